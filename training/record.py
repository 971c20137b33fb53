"""Records the metrics of a run from the device to the file and the screen."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import jax
import optax

from base.errors import UserError
from training import json_files
from training.metrics import MetricsFile, ProgressLine
from training.optimizer import rate_at
from training.step_costs import StepCosts
from training.tracking import Tracking

if TYPE_CHECKING:
  from training.loop import LoopOptions


class TrainingError(UserError):
  """The run cannot continue."""


class TooManySkips(TrainingError):
  """Too many steps in a row were skipped: the parameters, not a batch, must be at fault.

  Attributes:
    since: the last step that changed the parameters.
  """

  def __init__(self, message: str, since: int):
    super().__init__(message)
    self.since = since


class NotFinite(TrainingError):
  """The train state is not finite, although the steps were taken."""


class TrainingLog:
  """The metrics of a run: written, and not yet written."""

  def __init__(
    self,
    *,
    options: LoopOptions,
    learning_rate: optax.Schedule,
    bytes_per_token: float | None,
    metrics: MetricsFile,
    progress: ProgressLine,
    pending: list[list[float | None]],
    heldout: dict[str, float | None],
    costs: StepCosts | None = None,
    tracking: Tracking | None = None,
    tokens_per_target: float = 1.0,
  ):
    """Continues a log.

    Args:
      options, learning_rate, bytes_per_token, tokens_per_target: as of `training.loop.train`.
      metrics: the file of metrics.
      progress: shows the steps.
      pending: loss, gradient norm and targets of the steps that are not yet written.
      heldout: the last held-out figures.
      costs: times the steps; None times them from now.
      tracking: gets what the file gets; None for no trackers.
    """
    self.options = options
    self.learning_rate = learning_rate
    self.bytes_per_token, self.tokens_per_target = bytes_per_token, tokens_per_target
    self.metrics = metrics
    self.progress = progress
    # Steps not yet written: saved in checkpoints, so that a resumed run writes the same lines.
    self.pending = [[json_files.number(value) for value in step] for step in pending]
    self.heldout = {name: json_files.number(value) for name, value in heldout.items()}
    self.heldout_step = -1
    # Whether the last recorded step was taken: its loss and gradient were finite and no spike.
    self.judged = True
    self.rates: list[float] = []
    self._rate, self._most_steps = math.nan, 0
    self.mfu: float | None = None
    self._costs, self._tracking = costs or StepCosts(), tracking or Tracking()
    # The steps after this one are timed: the first of a process compiles.
    self._started = 0
    self.start_clock()

  def started(self, step: int) -> None:
    """Begins to time the steps after `step`, the first of this process."""
    self._started = step
    self._costs.start()
    self.start_clock()
    self.progress.started(step)

  def start_clock(self) -> None:
    """Starts to time the next line."""
    self._clock, self._timed_targets = time.monotonic(), 0.0

  def record(self, step: int, device_metrics: dict[str, jax.Array]) -> None:
    """Records the metrics of step `step` (1 is the first); waits for the device.

    Raises:
      TooManySkips: too many steps in a row were skipped.
    """
    values = {name: value.item() for name, value in jax.device_get(device_metrics).items()}
    if step > self._started:
      self._costs.step_done(taken=not values["skipped_in_a_row"])
      self._timed_targets += values["targets"]
    self.pending.append([values["loss"], values["grad_norm"], values["targets"]])
    # As in the next line of the file: the mean since the last one.
    loss = sum(step[0] for step in self.pending) / len(self.pending)
    shown = {"loss": loss, **self._bits("bits/byte", loss)}
    if step % self.options.log_every == 0 or step == self.options.steps:
      self._write_line(step, values)
    if self.rates:
      shown["tokens/s"] = self._rate
    if self.mfu is not None:
      shown["MFU"] = self.mfu
    if values["skipped"]:
      shown["skipped"] = values["skipped"]
    if self.progress.live or step % self.options.log_every == 0 or step == self.options.steps:
      self.progress.show(step, shown)
    skips, limit = values["skipped_in_a_row"], self.options.step.max_skips
    self.judged = skips == 0
    if skips >= limit:
      raise TooManySkips(
        f"step {step}: {skips} steps in a row were skipped (limit {limit}), the last with loss "
        f"{values['loss']:.4g} and gradient norm {values['grad_norm']:.4g}.",
        since=step - skips,
      )

  def _write_line(self, step: int, values: dict[str, float]) -> None:
    losses, norms, targets = zip(*self.pending, strict=True)
    loss = sum(losses) / len(losses)
    seconds = time.monotonic() - self._clock
    timed = seconds > 0 and self._timed_targets > 0
    # The model reads the tokens outside of the loss too.
    rate = self._timed_targets * self.tokens_per_target / seconds if timed else math.nan
    costs = self._costs.line()
    self._write(
      {
        "step": step,
        "loss": loss,
        **self._bits("bits_per_byte", loss),
        "grad_norm": sum(norms) / len(norms),
        # The last applied rate: the schedule counts the steps taken.
        "learning_rate": rate_at(self.learning_rate, max(0, step - values["skipped"] - 1)),
        "targets": sum(targets),
        "skipped": values["skipped"],
        "tokens_per_second": rate,
        **costs,
      }
    )
    if timed:
      self.rates.append(rate)
      # A run's last line may have a step or two, after a pause: the rate before tells more.
      if 2 * len(self.pending) >= self._most_steps:
        self._rate, self._most_steps = rate, max(self._most_steps, len(self.pending))
    self.mfu = costs.get("mfu")
    self.pending = []
    self.start_clock()

  def record_heldout(self, step: int, heldout: dict[str, float]) -> None:
    """Records the held-out figures after step `step`."""
    self.heldout, self.heldout_step = heldout, step
    self._write({"step": step, **heldout})
    self.progress.show_heldout(step, heldout)
    self.start_clock()

  def _write(self, record: dict[str, Any]) -> None:
    """Writes a record to the file and to the trackers."""
    self.metrics.write(record)
    numbers = {name: value for name, value in record.items() if name != "step"}
    self._tracking.write(record["step"], json_files.without_nan(numbers))

  def _bits(self, name: str, loss: float) -> dict[str, float]:
    """Returns the bits per byte of a loss under this name; nothing for data that spell no text."""
    if self.bytes_per_token is None:
      return {}
    return {name: loss / math.log(2) / self.bytes_per_token}
