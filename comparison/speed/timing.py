"""Times interleaved runs; medians with distribution-free intervals."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax

CONFIDENCE = 0.95
Name = TypeVar("Name", bound=Hashable)


class MedianInterval(NamedTuple):
  """A median with its interval."""

  median: float
  low: float
  high: float

  def overlaps(self, other: MedianInterval) -> bool:
    """Whether the intervals overlap."""
    return self.low <= other.high and other.low <= self.high

  def scaled(self, factor: float) -> MedianInterval:
    """Returns the interval of a positive multiple of the values."""
    return MedianInterval(*(factor * value for value in self))

  def inverse(self, numerator: float) -> MedianInterval:
    """Returns the interval of `numerator` over the values: a rate from times."""
    return MedianInterval(numerator / self.median, numerator / self.high, numerator / self.low)


def interleaved(runs: Mapping[Name, Callable[[], Any]], rounds: int) -> dict[Name, list[float]]:
  """Measures the seconds of every run in every round.

  All run once untimed, which compiles them, and then once in every round, so that a busy moment of
  the machine affects all alike.

  Args:
    runs: functions to time; their result is waited for.
    rounds: number of timed rounds.
  """
  seconds: dict[Name, list[float]] = {name: [] for name in runs}
  for run in runs.values():
    jax.block_until_ready(run())
  for _ in range(rounds):
    for name, run in runs.items():
      started = time.perf_counter()
      jax.block_until_ready(run())
      seconds[name].append(time.perf_counter() - started)
  return seconds


def medians(seconds: Mapping[Name, Sequence[float]]) -> dict[Name, float]:
  """Returns the median of every run."""
  return {name: statistics.median(values) for name, values in seconds.items()}


def interval(samples: Sequence[float]) -> MedianInterval:
  """Returns the median and its interval between two of the samples, by rank.

  The true median is between the k-th smallest and k-th largest of n independent samples, except
  with probability 2 P(Binomial(n, 1/2) < k). k is the largest that leaves `CONFIDENCE`; with fewer
  than six samples, the interval is from the smallest to the largest (see `spread`).
  """
  ordered, cut = sorted(samples), max(_cut(len(samples)), 1)
  return MedianInterval(statistics.median(ordered), ordered[cut - 1], ordered[-cut])


def ratio(samples: Sequence[float], reference: Sequence[float]) -> MedianInterval:
  """Returns the interval of the ratio of two runs, round by round."""
  return interval([one / other for one, other in zip(samples, reference, strict=True)])


def spread(rounds: int) -> str:
  """Describes `interval` for a figure."""
  if _cut(rounds):
    return f"median of {rounds} interleaved rounds and its {CONFIDENCE:.0%} interval"
  return f"median, smallest and largest of {rounds} interleaved rounds"


def _cut(count: int) -> int:
  """Returns the k of `interval`; 0 if there is none."""
  outside, cut = 0.0, 0
  while cut < (count + 1) // 2:
    outside += 2 * math.comb(count, cut) / 2**count
    if outside > 1 - CONFIDENCE:
      break
    cut += 1
  return cut
