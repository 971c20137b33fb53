"""Compares implementations of the recurrence, alone and in a training step (section 4.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

from base.ranges import Count, FloatName
from comparison.measurement import Cached
from comparison.page.figure import Axis, Figure
from comparison.speed import recurrences, timing
from comparison.speed.description import NO_DIFFERENCE, conditions, listed, series, times
from comparison.speed.timing import MedianInterval
from comparison.speed.train_step import TrainingSteps
from layers.recurrent_block import RecurrentBlock
from models.language_model import LanguageModel

# The native scan, which is also the reference of the paper's figure.
REFERENCE = "reference"
_LABEL = f"time / that of {REFERENCE} (lax.scan)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrenceSpeed:
  """Times every implementation that runs on this backend.

  Attributes:
    shape: batch, tokens and channels of the recurrence alone; 8 rows and 1024 channels in the
      paper.
    dtype: dtype of its inputs.
    batch_size, length: rows and tokens per row of the training step; models without a recurrence
      are left out.
    rounds: number of timed rounds.
  """

  shape: Sequence[Count] = (8, 2048, 1024)
  dtype: FloatName = "float32"
  batch_size: Count = 8
  length: Count = 2048
  rounds: Count = 7

  def __post_init__(self):
    if len(self.shape) != 3 or min(self.shape) < 1:
      raise ValueError(f"shape={tuple(self.shape)} must name batch, tokens and channels.")

  def results(self, models: Mapping[str, LanguageModel]) -> Mapping[str, float]:
    """See `comparison.measurement.Measurement`."""
    return dict.fromkeys((*recurrences.OPS, *_recurrent(models)), 1.0)

  def __call__(self, models: Mapping[str, LanguageModel], cached: Cached) -> tuple[Figure, ...]:
    """See `comparison.measurement.Measurement`."""
    ops = {op: cached(op, partial(self._measure_alone, op)) for op in recurrences.OPS}
    figures = [self._alone(ops)]
    recurrent = _recurrent(models)
    steps = {
      name: cached(name, partial(self._measure_step, model)) for name, model in recurrent.items()
    }
    if steps:
      figures.append(self._in_step(recurrent, steps))
    return tuple(figures)

  def _measure_alone(self, op: str) -> dict:
    batch, tokens, channels = self.shape
    shape = batch, tokens, channels
    seconds = timing.interleaved(recurrences.runs(op, shape, self.dtype), self.rounds)
    found: dict = {}
    for (implementation, direction), values in seconds.items():
      found.setdefault(direction, {})[implementation] = values
    return found

  def _measure_step(self, model: LanguageModel) -> dict:
    steps = TrainingSteps(model)
    runs = {
      name: steps.of(self.batch_size, self.length, _with_recurrence(model, name))
      for name in recurrences.available("rg_lru")
    }
    return timing.interleaved(runs, self.rounds)

  def _alone(self, ops: Mapping[str, dict]) -> Figure:
    lines, absolute, found = [], [], {}
    for op, directions in ops.items():
      for direction, seconds in directions.items():
        name = f"{op}, {direction}"
        found[name] = _relative(seconds)
        lines.append(series(name, tuple(found[name]), tuple(found[name].values())))
        milliseconds = 1e3 * timing.interval(seconds[REFERENCE]).median
        absolute.append((f"{REFERENCE} of {name}", f"{milliseconds:.4g} ms"))
    batch, tokens, channels = self.shape
    return Figure(
      name="recurrence-alone",
      title="The recurrence alone, by implementation",
      finding=_finding(f"On {batch} rows of {tokens:,} tokens and {channels:,} channels", found),
      x=Axis(label="implementation"),
      y=Axis(label=_LABEL),
      series=tuple(lines),
      spread=f"{timing.spread(self.rounds)}, of the quotient in each round",
      conditions=(("shape", f"{batch} x {tokens} x {channels} {self.dtype}"), *absolute),
      source="section 4.2",
    )

  def _in_step(self, models: Mapping[str, LanguageModel], steps: Mapping[str, dict]) -> Figure:
    found = {name: _relative(seconds) for name, seconds in steps.items()}
    absolute = [
      (f"{REFERENCE} in {name}", f"{1e3 * timing.interval(seconds[REFERENCE]).median:.4g} ms")
      for name, seconds in steps.items()
    ]
    return Figure(
      name="recurrence-in-step",
      title="A whole training step, by implementation of the recurrence",
      finding=_finding(
        f"In a training step of {self.batch_size} rows of {self.length:,} tokens", found
      ),
      x=Axis(label="implementation"),
      y=Axis(label=_LABEL),
      series=tuple(series(name, tuple(one), tuple(one.values())) for name, one in found.items()),
      spread=f"{timing.spread(self.rounds)}, of the quotient in each round",
      conditions=(
        ("rows and tokens", f"{self.batch_size} x {self.length}"),
        *absolute,
        *conditions(models),
      ),
      source="section 4.2",
    )


def _relative(seconds: Mapping[str, Sequence[float]]) -> dict[str, MedianInterval]:
  return {name: timing.ratio(values, seconds[REFERENCE]) for name, values in seconds.items()}


def _finding(where: str, found: Mapping[str, Mapping[str, MedianInterval]]) -> str:
  """Names the fastest implementation, its time relative to the native scan's, and its ties."""
  parts = []
  for name, intervals in found.items():
    fastest = min(intervals, key=lambda one: intervals[one].median)
    ties = [
      other
      for other, one in intervals.items()
      if other != fastest and one.overlaps(intervals[fastest])
    ]
    notes = []
    if REFERENCE not in (fastest, *ties):
      notes.append(f"{times(intervals[fastest], intervals[REFERENCE])} the time of {REFERENCE}")
    if ties:
      notes.append(f"{NO_DIFFERENCE} from {listed(ties)}")
    parts.append(f"{fastest} for {name}" + (f" ({'; '.join(notes)})" if notes else ""))
  return f"{where}, the fastest is {listed(parts)}."


def _recurrent(models: Mapping[str, LanguageModel]) -> dict[str, LanguageModel]:
  return {
    name: model
    for name, model in models.items()
    if any(_is_recurrent(factory) for factory in model.pattern)
  }


def _is_recurrent(factory) -> bool:
  return isinstance(factory(parent=None), RecurrentBlock)


def _with_recurrence(model: LanguageModel, implementation: str) -> LanguageModel:
  """Returns the model with a named implementation of its recurrences."""
  return model.clone(
    pattern=tuple(
      partial(factory, implementation=implementation) if _is_recurrent(factory) else factory
      for factory in model.pattern
    )
  )
