"""The numbers of a run on their way from the device to the file and the screen."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import jax
import optax

from base.errors import UserError
from training import json_files
from training.metrics import MetricsFile, ProgressLine
from training.optimizer import rate_at

if TYPE_CHECKING:
  from training.loop import Options


class TrainingError(UserError):
  """The run cannot go on."""


class TooManySkips(TrainingError):
  """So many steps in a row were skipped that the parameters, not a batch, must be what is wrong.

  Attributes:
    since: the step after which nothing changed.
  """

  def __init__(self, message: str, since: int):
    super().__init__(message)
    self.since = since


class NotFinite(TrainingError):
  """The train state holds values that are not finite, although the steps were taken."""


class TrainingLog:
  """What a run has told, and has yet to tell."""

  def __init__(
    self,
    *,
    options: Options,
    learning_rate: optax.Schedule,
    bytes_per_token: float,
    metrics: MetricsFile,
    progress: ProgressLine,
    pending: list[list[float | None]],
    heldout: dict[str, float | None],
  ):
    self.options = options
    self.learning_rate = learning_rate
    self.bytes_per_token = bytes_per_token
    self.metrics = metrics
    self.progress = progress
    # Steps not yet in a line: kept in checkpoints, so that the next line is as if uninterrupted.
    self.pending = [[json_files.number(value) for value in step] for step in pending]
    self.heldout = {name: json_files.number(value) for name, value in heldout.items()}
    self.heldout_step = -1
    # Whether the last step that was told was taken: its loss and gradient were finite and no spike.
    self.judged = True
    self.rates: list[float] = []
    self.start_clock()

  def start_clock(self) -> None:
    """Starts to time the line in progress."""
    self._clock, self._timed_targets = time.monotonic(), 0.0

  def record(self, step: int, device_metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of step `step` (1 is the first), waiting for the device.

    Raises:
      TooManySkips: in a row.
    """
    values = {name: value.item() for name, value in jax.device_get(device_metrics).items()}
    self.pending.append([values["loss"], values["grad_norm"], values["targets"]])
    self._timed_targets += values["targets"]
    # What the line in the file says, or will say so far: the mean since the last one.
    loss = sum(step[0] for step in self.pending) / len(self.pending)
    shown = {"loss": loss, "bits/byte": self._bits_per_byte(loss)}
    if step % self.options.log_every == 0 or step == self.options.steps:
      self._write_line(step, values)
    if self.rates:
      shown["tokens/s"] = self.rates[-1]
    if values["skipped"]:
      shown["skipped"] = values["skipped"]
    if self.progress.live or step % self.options.log_every == 0 or step == self.options.steps:
      self.progress.show(step, shown)
    skips, limit = values["skipped_in_a_row"], self.options.step.max_skips
    self.judged = skips == 0
    if skips >= limit:
      raise TooManySkips(
        f"step {step}: {skips} steps in a row were skipped (limit {limit}), at last for a loss of "
        f"{values['loss']:.4g} and a gradient norm of {values['grad_norm']:.4g}.",
        since=step - skips,
      )

  def _write_line(self, step: int, values: dict[str, float]) -> None:
    losses, norms, targets = zip(*self.pending, strict=True)
    loss = sum(losses) / len(losses)
    seconds = time.monotonic() - self._clock
    rate = self._timed_targets / seconds if seconds > 0 else math.nan
    self.metrics.write(
      {
        "step": step,
        "loss": loss,
        "bits_per_byte": self._bits_per_byte(loss),
        "grad_norm": sum(norms) / len(norms),
        # The last that was applied: the schedule counts the steps taken.
        "learning_rate": rate_at(self.learning_rate, max(0, step - values["skipped"] - 1)),
        "targets": sum(targets),
        "skipped": values["skipped"],
        "tokens_per_second": rate,
      }
    )
    self.rates.append(rate)
    self.pending = []
    self.start_clock()

  def record_heldout(self, step: int, heldout: dict[str, float]) -> None:
    """Takes the held-out figures after step `step`."""
    self.heldout, self.heldout_step = heldout, step
    self.metrics.write({"step": step, **heldout})
    self.progress.show_heldout(step, heldout)
    self.start_clock()

  def _bits_per_byte(self, loss: float) -> float:
    return loss / math.log(2) / self.bytes_per_token
