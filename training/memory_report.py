"""Explains a lack of memory: the largest arrays by name, a memory profile, and what to change."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from base import buckets, paths
from base.errors import is_out_of_memory
from parallel.tree_paths import by_path
from training.record import TrainingError
from training.step import TrainState

# In a run directory, or beside one in a bucket: a profile for pprof.
FILE = "memory.prof"
_SHOWN = 8


class OutOfMemory(TrainingError):
  """The memory of a device, or of the machine, is full."""


@contextlib.contextmanager
def explained(
  run_dir: Path, abstract: TrainState, arrays: Callable[[], Any] = lambda: None
) -> Iterator[None]:
  """Turns a lack of memory in the block into an error that tells where the memory went.

  Args:
    run_dir: where the profile is written.
    abstract: shapes, dtypes and shardings of the train state.
    arrays: returns the train state; its arrays are not listed a second time.

  Raises:
    OutOfMemory: memory ran out.
  """
  try:
    yield
  except Exception as error:
    if not is_out_of_memory(error):
      raise
    # After this line nothing may fail for want of memory: the report itself needs little.
    raise OutOfMemory(report(error, run_dir, abstract, arrays())) from error


def report(error: BaseException, run_dir: Path, abstract: TrainState, state: Any = None) -> str:
  """Formats the report, and writes the profile: see `explained`."""
  params, optimizer = (
    _named(abstract.params, "parameter"),
    _named(abstract.opt_state, "optimizer"),
  )
  known = {id(leaf) for leaf in jax.tree.leaves(state)}
  others = [
    (_bytes(array), f"{array.dtype}{list(array.shape)}, no part of the train state")
    for array in jax.live_arrays()
    if id(array) not in known and not array.is_deleted()
  ]
  # The state's arrays count by their shapes: the step that failed may have them already.
  largest = sorted([*params, *optimizer, *others], key=lambda one: -one[0])[:_SHOWN]
  totals = [sum(size for size, _ in group) for group in (params, optimizer, others)]
  lines = [
    f"not enough memory: {_first_line(error)}",
    f"  a device holds {_gb(totals[0])} of parameters, {_gb(totals[1])} of optimizer state and "
    f"{_gb(totals[2])} of other arrays; the rest is what a step needs in between. The largest:",
    *(f"  {_gb(size):>9}  {name}" for size, name in largest),
    _profile(run_dir),
    _advice(totals),
  ]
  return "\n".join(line for line in lines if line)


def _named(tree: Any, kind: str) -> list[tuple[int, str]]:
  return [
    (_bytes(leaf), f"{kind} {path}: {leaf.dtype}{list(leaf.shape)}")
    for path, leaf in by_path(tree).items()
  ]


def _bytes(array: Any) -> int:
  """Bytes of an array, abstract or not, on one device."""
  shape = array.sharding.shard_shape(array.shape) if array.sharding else array.shape
  return math.prod(shape) * array.dtype.itemsize


def _profile(run_dir: Path) -> str:
  file = buckets.beside(run_dir) / FILE
  try:
    jax.profiler.save_device_memory_profile(str(file))
  except Exception:  # no directory, a full disk, a backend without profiles
    return ""
  return f"  a memory profile is in {paths.shown(file)}: pprof -top {paths.shown(file)}"


def _advice(totals: list[int]) -> str:
  state, others = totals[0] + totals[1], totals[2]
  step = (
    "Lower what a step needs: raise --gin.MICROBATCHES, lower --gin.BATCH_SIZE or "
    "--gin.SEQUENCE_LENGTH, or keep less for the backward pass "
    "(--gin.models.backbone.Backbone.remat=save_mixer_outputs, or full)."
  )
  held = (
    "Lower what is held: split it over more devices (gin/mesh/zero3.gin), or keep less optimizer "
    "state (gin/optimizer/lion.gin, gin/optimizer/adafactor.gin)."
  )
  limit = _limit()
  large = limit is not None and state + others > limit / 2
  return f"{held} {step}" if large else f"{step} {held}"


def _limit() -> int | None:
  """Bytes that this process may use of a device; None if it does not tell."""
  return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def _gb(size: float) -> str:
  return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"


def _first_line(error: BaseException) -> str:
  text = str(error).partition("\n")[0].strip()
  return text.partition("RESOURCE_EXHAUSTED: ")[2] or text or type(error).__name__
