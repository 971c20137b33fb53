"""Finds the learning rate at which a model learns a task best, on examples that no figure shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from base.ranges import Positive, Seed
from comparison.measurement import Cached

# Rates within this share of right answers of the best are as good as it.
_AS_GOOD = 0.05


@dataclasses.dataclass(frozen=True)
class Searched:
  """What a search found for a model.

  Attributes:
    right: share of right answers on validation examples by learning rate, ascending.
    best: the chosen rate.
  """

  right: Mapping[float, float]
  best: float

  @property
  def is_at_edge(self) -> bool:
    """Whether the chosen rate is the smallest or the largest that was tried."""
    return self.best in (min(self.right), max(self.right))

  @property
  def width(self) -> tuple[float, float]:
    """The ends of the range around the best rate whose rates are as good as it."""
    rates = sorted(self.right)
    low = high = rates.index(self.best)
    enough = self.right[self.best] - _AS_GOOD
    while low > 0 and self.right[rates[low - 1]] >= enough:
      low -= 1
    while high + 1 < len(rates) and self.right[rates[high + 1]] >= enough:
      high += 1
    return rates[low], rates[high]

  def says(self, name: str) -> str:
    """Tells the choice in words."""
    low, high = self.width
    where = f"{name} {self.right[self.best]:.0%} at {self.best:g}"
    if low < high:
      where += f" (as good from {low:g} to {high:g})"
    return f"{where}, the edge of the grid" if self.is_at_edge else where


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateSearch:
  """Trains every model at each peak learning rate of a grid, and chooses by validation examples.

  Recurrent models learn recall in a narrow band of rates (arXiv 2508.19029), so models are compared
  each at its own. All rates get the whole training: a recall task is learned in a jump, before
  which good and bad rates look alike, so that halving would drop good ones. If the best rate is at
  an edge of the grid, one more rate is tried behind it, once.

  Attributes:
    rates: peak learning rates, ascending, at least two.
    seed: seed of parameters and examples; another than those of the figures.
  """

  rates: Sequence[Positive]
  seed: Seed = 100

  def __post_init__(self):
    require_grid(self.rates)

  def keys(self, name: str) -> list[str]:
    """Returns the keys of the results of a model's search, without that behind an edge."""
    return [_key(name, rate) for rate in self.rates]

  def __call__(
    self, name: str, cached: Cached, train: Callable[[float], Mapping[str, Any]]
  ) -> Searched:
    """Searches the rate of a model.

    Args:
      name: the model's name.
      cached: stores each result.
      train: trains at a rate; returns 'right', the share of right answers at the end, and 'mean',
        that during training, which decides between equal ones.
    """
    found = {rate: cached(_key(name, rate), lambda rate=rate: train(rate)) for rate in self.rates}

    def best() -> float:
      return max(found, key=lambda rate: (found[rate]["right"], found[rate]["mean"]))

    further = behind_edge(self.rates, best())
    if further is not None:
      found[further] = cached(_key(name, further), lambda: train(further))
    return Searched({rate: found[rate]["right"] for rate in sorted(found)}, best())


def require_grid(rates: Sequence[float]) -> None:
  """Raises ValueError unless there are at least two rates, ascending."""
  if len(rates) < 2 or list(rates) != sorted(set(rates)):
    raise ValueError(f"rates={tuple(rates)} must be ascending, and at least two.")


def behind_edge(rates: Sequence[float], rate: float) -> float | None:
  """Returns the rate behind an edge of a grid, at the edge's ratio; None for a rate inside."""
  if rate == rates[0]:
    return rates[0] * rates[0] / rates[1]
  if rate == rates[-1]:
    return rates[-1] * rates[-1] / rates[-2]
  return None


def _key(name: str, rate: float) -> str:
  return f"{name}, learning rate {rate:g}"
