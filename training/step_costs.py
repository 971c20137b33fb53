"""What steps cost: their times, MFU, waits and stalls, memory, and goodput over a run's lives."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from models import accounting

# Names of figures that depend on the speed of the machine, in a line of metrics.
SPEEDS = frozenset({
  "tokens_per_second", "step_seconds", "worst_step_seconds", "mfu", "data_wait_seconds",
  "checkpoint_seconds", "device_memory_bytes", "device_memory_peak_bytes", "goodput",
  "wall_seconds",
})  # fmt: skip
# Bytes at the end of a file of metrics that hold its last lines.
_TAIL = 2**16


@dataclasses.dataclass(frozen=True)
class Work:
  """A step's work on one device, for MFU.

  Attributes:
    model_flops, peak_flops: see `models.accounting.mfu`.
  """

  model_flops: float
  peak_flops: float

  def mfu(self, seconds: float) -> float:
    """MFU of a step of so many seconds."""
    return accounting.mfu(self.model_flops, self.peak_flops, seconds)


class StepCosts:
  """Times the steps of one life of a run, and adds up those of its earlier lives.

  A life is one process that trains. It begins when this is made. `start` begins to time steps, once
  the first is compiled and done; `step_done` ends a step; `pause` takes out what is no step.
  """

  def __init__(
    self,
    *,
    work: Work | None = None,
    wall: float = 0.0,
    counted: float = 0.0,
    began: float | None = None,
    now: Callable[[], float] = time.monotonic,
  ):
    """Begins a life.

    Args:
      work: for MFU; None leaves it out.
      wall: seconds of all earlier lives.
      counted: seconds of the steps that led to the state from which this life continues.
      began: the clock when this life began; None is now.
      now: the clock, in seconds.
    """
    self._now, self._work = now, work
    self._began = now() if began is None else began
    self._wall, self._counted = wall, counted
    self._last: float | None = None
    self._paused = 0.0
    self._reset()

  def _reset(self) -> None:
    self._steps: list[float] = []
    self._waits = self._stalls = 0.0

  def start(self) -> None:
    """Begins to time steps: the next one starts now."""
    self._last, self._paused = self._now(), 0.0
    self._reset()

  def step_done(self, taken: bool = True) -> None:
    """Ends a step; the next one starts. Does nothing before `start`.

    Args:
      taken: whether it changed the parameters; a skipped step does not count.
    """
    if self._last is None:
      return
    now = self._now()
    seconds = max(0.0, now - self._last - self._paused)
    self._last, self._paused = now, 0.0
    self._steps.append(seconds)
    if taken:
      self._counted += seconds

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Times a wait for data. It is a part of the step: the device computes meanwhile."""
    began = self._now()
    yield
    self._waits += self._now() - began

  @contextlib.contextmanager
  def pause(self, checkpoint: bool = False) -> Iterator[None]:
    """Takes an evaluation or a checkpoint out of the time of the step.

    Args:
      checkpoint: whether the training stands still for a checkpoint.
    """
    began = self._now()
    yield
    seconds = self._now() - began
    self._paused += seconds
    if checkpoint:
      self._stalls += seconds

  def line(self) -> dict[str, float]:
    """Returns the figures of the steps since the last line; docs/watching.md defines them."""
    found: dict[str, float] = {}
    if self._steps:
      median = statistics.median(self._steps)
      found["step_seconds"] = median
      found["worst_step_seconds"] = max(self._steps)
      if self._work is not None and median > 0:
        found["mfu"] = self._work.mfu(median)
      found["data_wait_seconds"] = self._waits / len(self._steps)
    found["checkpoint_seconds"] = self._stalls
    self._reset()
    return found | device_memory() | self.lives()

  def lives(self) -> dict[str, float]:
    """Returns `goodput` and `wall_seconds` over all lives until now."""
    wall = self._wall + self._now() - self._began
    return {"goodput": self._counted / wall if wall > 0 else 0.0, "wall_seconds": wall}

  def state(self) -> dict[str, float]:
    """Returns what a checkpoint keeps: see `earlier_lives`."""
    return {"counted": self._counted, "wall": self.lives()["wall_seconds"]}


def device_memory() -> dict[str, float]:
  """Returns the bytes in use and their peak on the fullest device of this process.

  Empty where the devices do not tell, as CPUs.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  names = {
    "device_memory_bytes": "bytes_in_use",
    "device_memory_peak_bytes": "peak_bytes_in_use",
  }
  return {
    name: float(max(one[key] for one in stats))
    for name, key in names.items()
    if stats and all(key in one for one in stats)
  }


def earlier_lives(run_dir: Path, file: str, kept: Any) -> dict[str, float]:
  """Returns `wall` and `counted` of a run's earlier lives, as arguments of `StepCosts`.

  Args:
    run_dir: the run's directory.
    file: name of its file of metrics, before it is cut to the checkpoint. Files of lives that began
      again at step 0 lie beside it, with a number in their name.
    kept: `StepCosts.state` in the checkpoint; None if there is none.
  """
  kept = kept if isinstance(kept, dict) else {}
  stem, _, suffix = file.rpartition(".")
  files = [run_dir / file, *run_dir.glob(f"{stem}.[0-9]*.{suffix}")]
  walls = [float(kept.get("wall") or 0.0), *(_last_wall(path) for path in files)]
  return {"wall": max(walls), "counted": float(kept.get("counted") or 0.0)}


def _last_wall(path: Path) -> float:
  """Returns the last `wall_seconds` in a file of metrics; 0 without one."""
  try:
    if not path.is_file():
      return 0.0
    with path.open("rb") as file:
      file.seek(max(0, path.stat().st_size - _TAIL))
      lines = file.read(_TAIL).split(b"\n")
  except OSError:
    return 0.0
  for line in reversed(lines):
    with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError):
      wall = float(json.loads(line)["wall_seconds"])
      if math.isfinite(wall):
        return wall
  return 0.0
