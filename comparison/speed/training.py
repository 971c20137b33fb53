"""Measures step time by row length, at the same number of tokens per step (section 4.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from base.ranges import Count
from comparison.measurement import Cached
from comparison.page.figure import ESTIMATED, Axis, Figure, Question, Series
from comparison.speed import timing
from comparison.speed.description import change, check_baseline, conditions, listed, series
from comparison.speed.timing import MedianInterval
from comparison.speed.train_step import TrainingSteps
from models.language_model import LanguageModel
from parallel.sharding_plan import Parallelism

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
_SOURCE = "section 4.3"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSpeed:
  """Times whole training steps: loss, gradient and AdamW's update.

  Every length is timed in the same rounds as the baseline at the shortest length.

  Attributes:
    lengths: tokens per row.
    tokens: tokens per step, for all lengths.
    baseline: the model that defines 1, by its step at the shortest length.
    rounds: number of timed rounds.
    parallelism: how a step is split over all visible devices; None uses one device.
  """

  lengths: Sequence[Count] = LENGTHS
  tokens: Count = 32768
  baseline: str = "MQA Transformer"
  rounds: Count = 7
  parallelism: Parallelism | None = None

  def __post_init__(self):
    _check_lengths(self.lengths, self.tokens)

  def results(self, models: Mapping[str, LanguageModel]) -> Mapping[str, float]:
    """See `comparison.measurement.Measurement`."""
    del models
    return {_key(length): 1.0 for length in self.lengths}

  def __call__(self, models: Mapping[str, LanguageModel], cached: Cached) -> tuple[Figure, ...]:
    """See `comparison.measurement.Measurement`."""
    check_baseline(self.baseline, models)
    steps = {name: TrainingSteps(model, self.parallelism) for name, model in models.items()}
    found: dict[str, list[MedianInterval]] = {name: [] for name in models}
    for length in self.lengths:
      result = cached(_key(length), partial(self._measure, steps, length))
      if length == self.lengths[0]:
        milliseconds = 1e3 * timing.interval(result["reference"]).median
      for name, intervals in found.items():
        intervals.append(timing.ratio(result["models"][name], result["reference"]))
    reference = f"{milliseconds:.4g} ms"
    x, y = _axes(self.baseline, self.lengths)
    return (
      Figure(
        name="training-speed",
        title="Time per training step against row length",
        finding=_finding(self.baseline, self.lengths, self.tokens, found),
        x=x,
        y=y,
        series=tuple(series(name, self.lengths, found[name]) for name in models),
        spread=f"{timing.spread(self.rounds)}, of the quotient in each round",
        conditions=(
          ("tokens per step", f"{self.tokens:,}"),
          (f"step of {self.baseline} at {self.lengths[0]:,} tokens", reference),
          *conditions(models),
        ),
        source=_SOURCE,
        asks=(_question(self.baseline, self.lengths),),
      ),
    )

  def _measure(self, steps: Mapping[str, TrainingSteps], length: int) -> dict:
    # None is the reference, timed in the same rounds.
    runs: dict[str | None, Callable[[], Any]] = {
      name: one.of(self.tokens // length, length) for name, one in steps.items()
    }
    shortest = self.lengths[0]
    if length != shortest:
      runs[None] = steps[self.baseline].of(self.tokens // shortest, shortest)
    seconds = timing.interleaved(runs, self.rounds)
    reference = seconds.pop(None, None) or seconds[self.baseline]
    return {"models": seconds, "reference": reference}


class StepEstimator(Protocol):
  """Estimates a training step on hardware that need not be attached.

  Attributes:
    hardware: the hardware's name.
  """

  hardware: str

  def __call__(self, model: LanguageModel, *, batch_size: int, length: int) -> float:
    """Estimates the seconds of a training step."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimatedTrainingSpeed:
  """Estimates `TrainingSpeed` for hardware that need not be attached.

  Attributes:
    estimate: estimates a step's time.
    lengths, tokens, baseline: as in `TrainingSpeed`.
  """

  estimate: StepEstimator
  lengths: Sequence[Count] = LENGTHS
  tokens: Count = 32768
  baseline: str = "MQA Transformer"

  def __post_init__(self):
    _check_lengths(self.lengths, self.tokens)

  def results(self, models: Mapping[str, LanguageModel]) -> Mapping[str, float]:
    """See `comparison.measurement.Measurement`."""
    return {_expected_key(name, length): 1.0 for name in models for length in self.lengths}

  def __call__(self, models: Mapping[str, LanguageModel], cached: Cached) -> tuple[Figure, ...]:
    """See `comparison.measurement.Measurement`."""
    check_baseline(self.baseline, models)
    seconds = {
      name: [
        cached(
          _expected_key(name, length),
          partial(self.estimate, model, batch_size=self.tokens // length, length=length),
        )
        for length in self.lengths
      ]
      for name, model in models.items()
    }
    reference, hardware = seconds[self.baseline][0], self.estimate.hardware
    found = {
      name: [MedianInterval(*[one / reference] * 3) for one in seconds[name]] for name in models
    }
    x, y = _axes(self.baseline, self.lengths)
    return (
      Figure(
        name=f"training-speed-{hardware.replace(':', '-')}",
        title=f"Expected time per training step on {hardware} against row length",
        finding=f"{_finding(self.baseline, self.lengths, self.tokens, found)[:-1]}, as estimated "
        f"for {hardware}.",
        x=x,
        y=y,
        series=tuple(
          Series(
            name=name,
            x=tuple(self.lengths),
            y=tuple(one.median for one in found[name]),
            kind=ESTIMATED,
          )
          for name in models
        ),
        conditions=(
          ("estimated", f"for {hardware}: the expected time of the compiled program"),
          ("tokens per step", f"{self.tokens:,}"),
          (
            f"step of {self.baseline} at {self.lengths[0]:,} tokens",
            f"{1e3 * reference:.4g} ms",
          ),
          *conditions(models),
        ),
        source=_SOURCE,
        asks=(_question(self.baseline, self.lengths, f" on {hardware}"),),
      ),
    )


def _question(baseline: str, lengths: Sequence[int], where: str = "") -> Question:
  return Question(
    text=f"training step{where} in rows of {lengths[-1]:,}, relative to {baseline} in rows of "
    f"{lengths[0]:,}",
    better="lower",
  )


def _check_lengths(lengths: Sequence[int], tokens: int) -> None:
  if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
    raise ValueError(f"lengths={tuple(lengths)} must be positive and ascending.")
  for length in lengths:
    if tokens % length:
      raise ValueError(
        f"tokens={tokens} per step are not a multiple of length {length}. Make them a multiple of "
        "every length."
      )


def _expected_key(name: str, length: int) -> str:
  """Names a stored result. Earlier versions stored roofline times, without `expected`."""
  return f"{name}, expected, {_key(length)}"


def _key(length: int) -> str:
  return f"{length} tokens"


def _axes(baseline: str, lengths: Sequence[int]) -> tuple[Axis, Axis]:
  return (
    Axis(label="tokens per row", log=True),
    Axis(label=f"step time / {baseline}'s at {lengths[0]:,} tokens"),
  )


def _finding(
  baseline: str,
  lengths: Sequence[int],
  tokens: int,
  found: Mapping[str, Sequence[MedianInterval]],
) -> str:
  """Describes the change of each model's step time from the shortest to the longest rows."""
  first, last = lengths[0], lengths[-1]
  changes = listed(
    [f"{name}'s from {change(values[0], values[-1])}" for name, values in found.items()]
  )
  return (
    f"With {tokens:,} tokens per step, from rows of {first:,} to {last:,} tokens, step times "
    f"relative to {baseline}'s at {first:,} change as follows: {changes}."
  )
