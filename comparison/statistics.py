"""Intervals for few seeds, paired differences, power laws, and claims about them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from scipy.special import stdtr, stdtrit

from comparison.page.figure import MEASURED, Difference, Places, Series

CONFIDENCE = 0.95
# With fewer seeds a difference is shown but not claimed.
SEEDS_OF_A_CLAIM = 3


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean over seeds with Student's interval.

  Attributes:
    mean: the mean.
    low, high: ends of the interval; both are the mean if there is only one value.
    count: number of values.
    p: two-sided p value of Student's t test of a mean of zero; None if it is unknown.
  """

  mean: float
  low: float
  high: float
  count: int
  p: float | None = None

  @property
  def supports_claim(self) -> bool:
    """Whether there are enough values for a claim about the sign."""
    return self.count >= SEEDS_OF_A_CLAIM

  @property
  def excludes_zero(self) -> bool:
    """Whether a difference is seen: zero is outside the interval, and there are enough values."""
    return self.supports_claim and (self.low > 0 or self.high < 0)


def interval(values: Sequence[float] | np.ndarray, confidence: float = CONFIDENCE) -> Interval:
  """Computes the mean of independent values with Student's t interval.

  With three seeds a percentile bootstrap would cover the truth in about 3 of 4 cases instead of 19
  of 20 (a test simulates both), because it cannot leave the range of the values.

  Raises:
    ValueError: there are no values, or one is not finite.
  """
  array = _finite(values)
  mean = float(array.mean())
  if len(array) == 1:
    return Interval(mean, mean, mean, 1)
  error, degrees = float(array.std(ddof=1)) / math.sqrt(len(array)), len(array) - 1
  half = _t(confidence, degrees) * error
  return Interval(mean, mean - half, mean + half, len(array), _p_value(mean, error, degrees))


def paired_difference(
  first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> Interval:
  """Computes the mean of first - second with its interval, pair by pair.

  Pairs share a seed, and with it the order of the data, so that common effects cancel.

  Raises:
    ValueError: the two differ in length.
  """
  if len(first) != len(second):
    raise ValueError(f"{len(first)} and {len(second)} values cannot be paired: one each per seed.")
  return interval(np.subtract(_finite(first), _finite(second)), confidence)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
  """y = coefficient * x ** exponent, fitted by least squares of logarithms, seed by seed.

  Attributes:
    exponents: [S] exponent of each seed's fit.
    log_coefficients: [S] natural logarithm of each seed's coefficient.
  """

  exponents: tuple[float, ...]
  log_coefficients: tuple[float, ...]

  @property
  def exponent(self) -> Interval:
    """The exponent over seeds, with its interval."""
    return interval(self.exponents)

  def each_at(self, x: float) -> list[float]:
    """Returns the fitted y of each seed at x."""
    pairs = zip(self.log_coefficients, self.exponents, strict=True)
    return [math.exp(a + b * math.log(x)) for a, b in pairs]

  def at(self, x: float) -> Interval:
    """Returns the fitted y at x: the geometric mean over seeds, with its interval."""
    found = interval([math.log(y) for y in self.each_at(x)])
    return Interval(
      math.exp(found.mean), math.exp(found.low), math.exp(found.high), len(self.exponents)
    )


def power_law(x: Sequence[float], y: Sequence[Sequence[float]] | np.ndarray) -> PowerLaw:
  """Fits a power law to each seed's values, so that its spread is that of the seeds.

  The fit has no constant term (the text's entropy): over sizes that span a factor of a hundred, it
  cannot be separated from the exponent.

  Args:
    x: [N] positive, at least two different ones.
    y: [S, N] positive.

  Raises:
    ValueError: x does not vary, or something is not positive.
  """
  places, values = _finite(x), np.asarray(y, np.float64)
  if not (places > 0).all() or not (values > 0).all():
    raise ValueError("a power law needs positive values.")
  logs_x, logs_y = np.log(places), np.log(values)
  if np.ptp(logs_x) == 0:
    raise ValueError("a power law needs at least two different x.")
  centred = logs_x - logs_x.mean()
  exponents = logs_y @ centred / (centred @ centred)
  log_coefficients = logs_y.mean(axis=1) - exponents * logs_x.mean()
  return PowerLaw(tuple(exponents.tolist()), tuple(log_coefficients.tolist()))


def says_difference(
  name: str,
  other: str,
  difference: Interval,
  *,
  lower: str,
  higher: str,
  digits: int = 3,
  few: str = "seeds",
) -> str:
  """Describes the difference of `name` and `other` in a clause without a full stop.

  Args:
    name, other: the compared names.
    difference: the interval of name - other.
    lower, higher: wording if the difference is below or above zero, such as 'is lower'.
    digits: digits after the point.
    few: what there are too few of, if there are too few to claim anything.
  """
  if not difference.supports_claim:
    mean = signed(difference.mean, digits)
    return f"too few {few} to claim a difference between {name} and {other} ({mean})"
  values = f"{signed(difference.low, digits)} to {signed(difference.high, digits)}"
  if not difference.excludes_zero:
    return f"no difference seen between {name} and {other} ({values})"
  verb = lower if difference.mean < 0 else higher
  size = f"{abs(difference.mean):.{digits}f}"
  return f"{name} {verb} {other} by {size} ({values})"


class Claims:
  """Says the differences of a figure, and notes them for the correction of the whole page.

  Attributes:
    noted: the differences of enough values for a claim, in the order in which they were said.
  """

  def __init__(self):
    """Begins with none."""
    self.noted: tuple[Difference, ...] = ()

  def says_difference(
    self, name: str, other: str, difference: Interval, *, of: str = "", **wording: Any
  ) -> str:
    """Notes a difference, and describes it as the function `says_difference` does.

    Args:
      name, other, difference, wording: as there.
      of: what the names are compared by, where one figure does so in several ways.
    """
    self.note(f"{name} minus {other}" + (f", {of}" if of else ""), difference)
    return says_difference(name, other, difference, **wording)

  def note(self, text: str, difference: Interval) -> None:
    """Notes a difference; one of too few values is none."""
    if difference.supports_claim and difference.p is not None:
      found = Difference(
        text=text, value=difference.mean, low=difference.low, high=difference.high, p=difference.p
      )
      self.noted = (*self.noted, found)


def series(
  name: str, x: Sequence[float] | Sequence[str], values: Sequence[Interval], kind: str = MEASURED
) -> Series:
  """Makes a series of means, with their intervals if there are several values."""
  spread: dict[str, tuple[float, ...]] = {}
  if all(value.count > 1 for value in values):
    spread["low"] = tuple(value.low for value in values)
    spread["high"] = tuple(value.high for value in values)
  y = tuple(value.mean for value in values)
  return Series(name=name, x=cast(Places, tuple(x)), y=y, kind=kind, **spread)


def spread_text(count: int) -> str:
  """Describes the intervals over `count` seeds, for a figure."""
  if count < 2:
    return "one seed, spread unknown"
  return f"{CONFIDENCE:.0%} interval (Student's t) over {count} seeds"


def signed(value: float, digits: int = 3) -> str:
  """Formats a number with its sign; zero has a plus."""
  return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
  array = np.asarray(values, np.float64)
  if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
    raise ValueError(f"needs at least one finite value, not {array.tolist()}.")
  return array


def _p_value(mean: float, error: float, degrees: int) -> float:
  if error == 0:
    return 1.0 if mean == 0 else 0.0
  return 2 * float(stdtr(degrees, -abs(mean) / error))


def _t(confidence: float, degrees: int) -> float:
  return float(stdtrit(degrees, (1 + confidence) / 2))
