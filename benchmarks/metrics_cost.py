"""What metrics and trackers cost of a training step of the quickstart, on this machine's CPUs.

    python -m benchmarks.metrics_cost            # about three minutes on two cores

Blocks of ten steps take turns: with and without the log, its line of metrics, and every tracker
that is installed. Wall time and CPU seconds are told, those of all threads and child processes, as
means with their standard errors. Steps vary by more than metrics cost; so the same calls are also
timed alone, without steps between them.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
import psutil

from comparison.speed.train_step import TrainingSteps
from experiment import experiment as experiment_lib
from training.loop import LoopOptions
from training.metric_writers import TensorBoard
from training.metrics import MetricsFile, ProgressLine
from training.record import TrainingLog
from training.step_costs import StepCosts
from training.trackers import MLflow, Trackio, WandB
from training.tracking import Tracking

RUN_FILE = "gin/runs/griffin_quickstart.gin"
# Calls that are timed alone.
CALLS = 500


class Used(NamedTuple):
  """Seconds until now: of the clock, and of the CPU in this process and its children."""

  wall: float
  cpu: float

  @staticmethod
  def now() -> Used:
    """Reads the clocks."""
    process = psutil.Process()
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    ended = process.cpu_times()
    return Used(
      time.perf_counter(),
      sum(t.user + t.system for t in times) + ended.children_user + ended.children_system,
    )

  def since(self, before: Used, steps: int) -> Used:
    """Seconds per step since an earlier reading."""
    return Used((self.wall - before.wall) / steps, (self.cpu - before.cpu) / steps)


def trackers() -> list[Any]:
  """The trackers whose packages are installed."""
  writers = [TensorBoard(), WandB(mode="offline"), MLflow(), Trackio()]
  needs = [getattr(writer, "needs", ()) for writer in writers]
  return [
    writer
    for writer, names in zip(writers, needs, strict=True)
    if all(importlib.util.find_spec(name) for name in names)
  ]


def log_into(
  folder: Path, options: LoopOptions, tracking: Tracking, costs: StepCosts
) -> TrainingLog:
  """Opens a run's log, as the training loop does."""
  return TrainingLog(
    options=options,
    learning_rate=optax.constant_schedule(1e-3),
    bytes_per_token=1.0,
    metrics=MetricsFile(folder / "metrics.jsonl", 0),
    progress=ProgressLine(options.steps, io.StringIO()),
    pending=[],
    heldout={},
    costs=costs,
    tracking=tracking,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--rounds", type=int, default=8, help="blocks of each kind (default: 8)")
  arguments = parser.parse_args()
  experiment = experiment_lib.build(experiment_lib.load([RUN_FILE]))
  options = LoopOptions(steps=10**9, log_every=experiment.options.log_every)
  take_step = TrainingSteps(experiment.model).of(experiment.batch_size, experiment.sequence_length)
  jax.block_until_ready(take_step())
  block, writers = options.log_every, trackers()
  with tempfile.TemporaryDirectory() as name, Tracking() as tracking:
    folder, costs = Path(name), StepCosts()
    tracking.open(writers, folder, 0, {}, print)
    log = log_into(folder, options, tracking, costs)
    log.started(0)
    with_metrics, without = [], []
    done, last = 0, take_step()
    for round_ in range(arguments.rounds + 1):
      before = Used.now()
      for _ in range(block):
        metrics = take_step()
        # One step late, as in the training loop.
        jax.block_until_ready(last)
        last = metrics
      between = Used.now()
      for _ in range(block):
        with costs.waiting():
          pass
        metrics, done = take_step(), done + 1
        log.record(done, last)
        last = metrics
      if round_:  # In the first the trackers are still starting.
        without.append(between.since(before, block))
        with_metrics.append(Used.now().since(between, block))
    jax.block_until_ready(last)
    begun, main_thread = Used.now(), time.thread_time()
    for _ in range(CALLS):
      done += 1
      log.record(done, last)
    main_thread = (time.thread_time() - main_thread) / CALLS
    in_loop = Used.now().since(begun, CALLS).wall
    tracking.close()
    alone = Used.now().since(begun, CALLS)
  step = Used(*(statistics.mean(values) for values in zip(*without, strict=True)))
  print(f"trackers: {', '.join(type(writer).__name__ for writer in writers)}")
  print(f"a step without metrics: {step.wall:.4f} s, {step.cpu:.4f} CPU s")
  for kind in Used._fields:
    differences = [
      getattr(a, kind) - getattr(b, kind) for a, b in zip(with_metrics, without, strict=True)
    ]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    mean = statistics.mean(differences)
    print(
      f"interleaved, {kind}: {mean / getattr(step, kind):+.2%} of a step "
      f"(standard error {error / getattr(step, kind):.2%}, {len(differences)} rounds of {block})"
    )
  print(
    f"the calls alone: {in_loop * 1e6:.0f} us in the loop ({in_loop / step.wall:.3%} of a step; "
    f"{main_thread * 1e6:.0f} us of CPU), with the trackers' threads and processes "
    f"{alone.cpu * 1e6:.0f} CPU us ({alone.cpu / step.cpu:.3%})"
  )


if __name__ == "__main__":
  main()
