"""The training loop: steps, metrics, held-out loss, checkpoints, resuming."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, TextIO

import jax
import numpy as np
import optax

from base import heartbeat, paths
from base.ranges import Count, CountFromZero, Immaterial
from parallel import processes
from parallel.sharding_plan import ShardingPlan
from training import (
  checkpoint_metadata,
  host_memory,
  memory_report,
  padded_vocabulary,
  programs,
  rates,
  remedies,
  retention,
  step_costs,
)
from training import step as step_lib
from training.checkpoint import FOLDER, CheckpointError, Checkpoints
from training.interruption import Interruption
from training.metric_writers import MetricWriter, TensorBoard
from training.metrics import (
  METRICS_FILE,
  MetricsFile,
  ProgressLine,
  plot_losses,
  read_metrics,
)
from training.profiler import Profiler
from training.record import NotFinite, TooManySkips, TrainingError, TrainingLog
from training.tracking import Tracking

LOSS_PICTURE = "loss.png"


class ResumableBatches(Protocol):
  """An iterator of training batches with a state to resume from."""

  def __next__(self) -> dict[str, np.ndarray]:
    """The next batch: see `data.loader.batch_of_rows`."""
    ...

  def state(self) -> dict[str, int]:
    """The iterator's state, as JSON values."""
    ...

  def restore(self, state: dict[str, int]) -> None:
    """Continues from a state."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopOptions:
  """Length of a run, and its logging, evaluation and checkpoints.

  Attributes:
    steps: number of optimizer steps.
    log_every: steps per line of metrics, which has their mean.
    evaluate_every: steps between held-out losses; 0 measures only at the end.
    checkpoint_every: steps between checkpoints; 0 saves only at the end.
    keep: number of newest checkpoints to keep, in addition to the best.
    tensorboard: also write TensorBoard event files; short for the TensorBoard writer.
    wandb, mlflow, trackio: trackers to write to as well; see `training.trackers`.
    writers: further writers of metrics; see `training.metric_writers`.
    step: options of a step; see `training.step.StepOptions`.
  """

  steps: Count
  log_every: Count = 10
  evaluate_every: CountFromZero = 500
  checkpoint_every: CountFromZero = 500
  keep: Count = 2
  tensorboard: Annotated[bool, Immaterial()] = False
  wandb: Annotated[MetricWriter | None, Immaterial()] = None
  mlflow: Annotated[MetricWriter | None, Immaterial()] = None
  trackio: Annotated[MetricWriter | None, Immaterial()] = None
  writers: Annotated[tuple[MetricWriter, ...], Immaterial()] = ()
  step: step_lib.StepOptions = dataclasses.field(default_factory=step_lib.StepOptions)

  def __post_init__(self):
    for name in ("steps", "log_every", "keep"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
    for name in ("evaluate_every", "checkpoint_every"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 0, which is 'at the end'.")

  def all_writers(self) -> tuple[MetricWriter, ...]:
    """The writers and trackers of the run."""
    trackers = (self.wandb, self.mlflow, self.trackio)
    named = tuple(tracker for tracker in trackers if tracker is not None)
    return (*self.writers, *([TensorBoard()] if self.tensorboard else []), *named)

  def is_due(self, done: int, every: int) -> bool:
    """Whether something is due after `done` steps; `every` 0 is only at the end."""
    return done == self.steps or (every > 0 and done % every == 0)


@dataclasses.dataclass(frozen=True)
class Summary:
  """The result of a run.

  Attributes:
    step: steps done.
    saved_step: step of the newest checkpoint; earlier than `step` if it was interrupted in a state
      that was not finite; None if there is none.
    start_step: steps that were done before this process began.
    interrupted: the signal that asked it to stop, also during or after the last step; None if none
      did.
    state: the train state.
    heldout: result of the last evaluation; empty if there was none.
    seconds_to_first_step: from the call to the end of the first step.
    tokens_per_second: median over the logged lines.
  """

  step: int
  saved_step: int | None
  start_step: int
  interrupted: signal.Signals | None
  state: step_lib.TrainState
  heldout: dict[str, float]
  seconds_to_first_step: float
  tokens_per_second: float


def train(
  *,
  model: Any,
  sharding_plan: ShardingPlan,
  optimizer: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  batches: ResumableBatches,
  batch_size: int,
  options: LoopOptions,
  run_dir: Path,
  seed: int,
  bytes_per_token: float | None,
  tokens_per_target: float = 1.0,
  evaluate: Callable[[Any], dict[str, float]] | None = None,
  start: Callable[[Any], Any] | None = None,
  identity: dict[str, Any] | None = None,
  after_first_step: Callable[[], None] | None = None,
  progress: ProgressLine | None = None,
  before_writing: Callable[[], None] = lambda: None,
  work: step_costs.Work | None = None,
  tracking: Tracking | None = None,
  hyperparameters: Mapping[str, object] | None = None,
  profile: range | None = None,
) -> Summary:
  """Trains, or continues the run in the run directory.

  Args:
    model: a language model of the zoo.
    optimizer: the transformation; learning_rate: its schedule.
    batches: training data, the rows that this process's devices need; restored to the checkpoint's
      state.
    batch_size: rows per step, over all processes.
    options: see `LoopOptions`.
    run_dir: directory for metrics, checkpoints and the loss plot.
    seed: seed of the parameters.
    bytes_per_token: mean bytes of text per target, for bits per byte; None leaves these out.
    tokens_per_target: mean tokens per target, for the speed.
    evaluate: maps parameters to held-out figures; 'heldout_loss' chooses the best checkpoint.
    start: maps abstract parameters to initial ones; missing ones are initialised randomly.
    identity: JSON values to save in each checkpoint (the configuration).
    sharding_plan: where everything lies.
    after_first_step: called after the first step is compiled and done.
    progress: shows the steps in place of a line on stderr.
    before_writing: called before each write; ends a process that lost the directory.
    work: a step's work on a device, for MFU; None leaves it out of the metrics.
    tracking: opens the options' writers and trackers, and leaves them open; None opens none.
    hyperparameters: values of the configuration, for trackers.
    profile: steps to trace; 1 is the first. See `training.profiler`.

  Raises:
    TrainingError: too many steps in a row were skipped, or the state was not finite for as many or
      at the end; the last good checkpoint and the best are kept.
    training.checkpoint.CheckpointError: the run in the directory cannot be continued.
    training.memory_report.OutOfMemory: memory ran out; the message has the largest arrays.
  """
  began = time.monotonic()
  kept = programs.kept_states(options.step, batch_size)
  abstract, create, take_step = programs.make(model, optimizer, options.step, sharding_plan, kept)
  checkpoints = Checkpoints(run_dir, keep=options.keep, before_writing=before_writing)
  restored = checkpoints.restore(abstract, padded_vocabulary.VocabularyRows.of(model))
  if restored is None:
    given = start(abstract.params) if start else {}
    with memory_report.explained(run_dir, abstract):
      # Like JAX, keep only the low 32 bits.
      state = create(np.uint32(seed % 2**32), given)
    del given
    metadata: dict[str, Any] = {}
  else:
    state, metadata = restored.state, restored.metadata
    try:
      checkpoint_metadata.check(metadata)
    except ValueError as error:
      folder = run_dir / FOLDER / str(restored.step)
      raise CheckpointError(
        f"checkpoint {restored.step}: {error}. Move {paths.shown(folder)} away to continue from "
        "the previous one."
      ) from None
    batches.restore(checkpoint_metadata.of_data(metadata))

  start_step = int(state.step)
  speaks = processes.is_first()
  if progress is None:
    progress = ProgressLine(options.steps, None if speaks else _silence())
  if restored is not None:
    for text in restored.passed_over:
      progress.say(f"skipped {text}")
    if start_step < options.steps:
      progress.say(f"continuing at step {start_step}")
  earlier = step_costs.earlier_lives(run_dir, METRICS_FILE, metadata.get("lives"))
  costs = step_costs.StepCosts(
    work=work, wall=earlier["wall"], counted=earlier["counted"], began=began
  )
  tracking = tracking or Tracking()
  if speaks:
    tracking.open(options.all_writers(), run_dir, start_step, hyperparameters, progress.say)
  run = TrainingLog(
    options=options,
    learning_rate=learning_rate,
    bytes_per_token=bytes_per_token,
    tokens_per_target=tokens_per_target,
    metrics=MetricsFile(
      run_dir / METRICS_FILE,
      metadata.get("metrics") or 0,
      before_writing=before_writing,
    )
    if speaks
    else MetricsFile(Path(os.devnull), None),
    progress=progress,
    pending=metadata.get("pending") or [],
    heldout=metadata.get("heldout") or {},
    costs=costs,
    tracking=tracking,
  )

  def save(state: step_lib.TrainState, last: bool) -> bool:
    """Saves a good state, or the last one if finite; returns whether it was saved."""
    if not (run.judged or last) or not retention.is_finite((state.params, state.opt_state)):
      return False
    run.metrics.sync()  # before a checkpoint that counts its records
    checkpoints.save(
      state,
      {
        "data": batches.state(),
        "metrics": run.metrics.position,
        # Copied, because it is written while the run continues.
        "pending": list(run.pending),
        "heldout": run.heldout,
        "identity": identity or {},
        "lives": costs.state(),
      },
      run.heldout.get("heldout_loss") if run.heldout_step == int(state.step) else None,
      judged=run.judged,
    )
    return True

  seconds_to_first_step = math.nan
  saved_step = start_step if restored is not None else None
  last_metrics = None
  # The step at which a checkpoint was due that could not be saved; None if none.
  owed: int | None = None
  window = rates.RateWindow(learning_rate, sharding_plan)
  stops, ended = False, False
  try:
    with (
      memory_report.explained(run_dir, abstract, lambda: state),
      Interruption() as interruption,
      Profiler(run_dir, profile, progress.say) as profiler,
    ):
      for step in range(start_step, options.steps):
        with costs.waiting():
          batch = sharding_plan.place(next(batches), batch_size)
        coming = window.at(step, state.spike_detector.taken)
        if step == start_step:
          with heartbeat.telling("compiling the step", progress.say):
            take_step.lower(state, batch, coming).compile()
          host_memory.release_free_memory()
          # Hosts compile at different speeds, and the first exchange of a CPU's step waits only
          # 30 s.
          processes.wait_for_all("compiled the step")
        if profiler.begins(step + 1):
          with costs.pause():
            profiler.begin()
        with profiler.step(step + 1):
          state, new_metrics = take_step(state, batch, coming)
        # One step late, so that the device computes this step while the last one is logged.
        if last_metrics is not None:
          run.record(step, last_metrics)
        last_metrics = new_metrics
        done = step + 1
        if step == start_step:
          jax.block_until_ready(new_metrics)
          seconds_to_first_step = time.monotonic() - began
          run.started(done)
          if after_first_step:
            after_first_step()
        evaluates = evaluate is not None and options.is_due(done, options.evaluate_every)
        stops = interruption.requested_at(done)
        saves = options.is_due(done, options.checkpoint_every) or stops or owed is not None
        if evaluates or saves or profiler.ends(done):
          run.record(done, last_metrics)
          last_metrics = None
        if profiler.ends(done):
          with costs.pause():
            profiler.end()
        if evaluates and evaluate is not None:
          with costs.pause():
            heldout = evaluate(state.params)
          run.record_heldout(done, heldout)
        if saves:
          with costs.pause(checkpoint=True):
            is_saved = save(state, last=stops or done == options.steps)
          saved_step, owed = (done, None) if is_saved else (saved_step, owed or done)
        if owed == done:
          progress.say(f"step {done} is not saved: {_wrong(run)}; the next good step will be")
        if owed is not None and not stops:
          _require_finite(done, owed, options)
        if stops:
          break
      # Also one that came after the last step, which no other process has seen.
      stops = stops or (processes.count() == 1 and interruption.requested_at(options.steps))
    # A run that stops early without new steps is saved already.
    checkpoints.wait()
    ended = not stops
  except NotFinite as error:
    checkpoints.wait()
    told = f"{error} {remedies.remedy(run_dir, saved_step, learning_rate, options.steps)}"
    raise TrainingError(told) from None
  except TooManySkips as error:
    if restored is not None and error.since == start_step:
      raise TrainingError(f"{error} {remedies.suspects(run_dir, start_step)}") from None
    good, moved = checkpoints.give_up(error.since)
    told = f"{error} {remedies.remedy(run_dir, good, learning_rate, options.steps)}"
    if moved:
      told += f" (Bad checkpoints were moved: {', '.join(map(str, moved))}.)"
    raise TrainingError(told) from None
  finally:
    if not ended:
      progress.close()
    run.metrics.close()
    checkpoints.close()

  step = int(state.step)
  if speaks:
    before_writing()
    plot_losses(read_metrics(run_dir / METRICS_FILE), run_dir / LOSS_PICTURE, run_dir.name)
    tracking.picture(step, run_dir / LOSS_PICTURE)
  return Summary(
    step=step,
    saved_step=saved_step,
    start_step=start_step,
    interrupted=interruption.by if stops else None,
    state=state,
    heldout=run.heldout,
    seconds_to_first_step=seconds_to_first_step,
    tokens_per_second=float(np.median(run.rates)) if run.rates else math.nan,
  )


def _silence() -> TextIO:
  """A progress without output, for all processes but the first."""
  return open(os.devnull, "w")


def _wrong(run: TrainingLog) -> str:
  return "its values are not finite" if run.judged else "it was skipped"


def _require_finite(done: int, owed: int, options: LoopOptions) -> None:
  """Raises NotFinite if the last step cannot be saved, or none could for too many steps.

  Only a state that is not finite remains unsaved for that long: skipped steps end the run earlier,
  and a state does not become finite again.
  """
  if done == options.steps:
    raise NotFinite(f"step {done}, the last: the parameters or the optimizer state are not finite.")
  if done - owed >= options.step.max_skips:
    raise NotFinite(
      f"step {done}: the parameters or the optimizer state have not been finite since step "
      f"{owed} or earlier."
    )
