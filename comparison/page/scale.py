"""Scales of a chart: from values to coordinates, and readable ticks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_TICKS = 7


@dataclasses.dataclass(frozen=True)
class Scale:
  """Maps values to a coordinate.

  Attributes:
    low, high: values at the ends.
    start, stop: coordinates of the ends.
    log: whether the scale is logarithmic.
    binary: whether ticks are powers of two.
  """

  low: float
  high: float
  start: float
  stop: float
  log: bool = False
  binary: bool = False

  def __call__(self, value: float) -> float:
    """Returns the coordinate of a value; values outside are clipped to the ends."""
    low, high, at = self.low, self.high, min(max(value, self.low), self.high)
    if self.log:
      low, high, at = math.log(low), math.log(high), math.log(at)
    share = (at - low) / (high - low)
    return round(self.start + share * (self.stop - self.start), 2)

  def ticks(self) -> list[tuple[float, str]]:
    """Returns the ticks: values and their labels."""
    if self.log and self.binary:
      return [(value, show(value)) for value in _powers(2, self.low, self.high)]
    if self.log and self.high / self.low >= 100:
      values = _powers(10, self.low, self.high)
      plain = all(1e-3 <= value < 1e5 for value in values)
      return [(value, show(value) if plain else power_of_ten(value)) for value in values]
    if self.log and self.high / self.low >= 4:
      exponent = math.floor(math.log10(self.low))
      steps = [m * 10.0**e for e in range(exponent, exponent + 4) for m in (1, 2, 5)]
      return [(value, show(value)) for value in steps if self.low <= value <= self.high]
    return [(value, show(value)) for value in _round_steps(self.low, self.high)]


def scale_of(
  values: Sequence[float], start: float, stop: float, *, log: bool, margin: float, from_zero: bool
) -> Scale:
  """Makes a scale with room for all values.

  Args:
    values: the values to show.
    start, stop: coordinates of the ends.
    log: as in `Scale`.
    margin: share of the range to add at both ends.
    from_zero: start at zero if that takes little room: for quantities, not for positions.
  """
  low, high = min(values), max(values)
  if log:
    spread = math.log(high / low) or 1.0
    binary = all(value == 2 ** round(math.log2(value)) for value in values) and high > low
    add = math.exp(margin * spread)
    return Scale(low / add, high * add, start, stop, True, binary)
  add = margin * ((high - low) or abs(high) or 1.0)
  lowest = low - add
  if from_zero and 0 <= low <= 0.4 * high:
    lowest = 0.0
  return Scale(lowest, high + add, start, stop)


def show(value: float, digits: int = 4) -> str:
  """Formats a number with up to `digits` significant digits."""
  if value == 0:
    return "0"
  if 1e-3 <= abs(value) < 1e6:
    if float(value).is_integer():
      return _minus(f"{value:,.0f}")
    after = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{after}f}"
    return _minus(text.rstrip("0").rstrip(".") if "." in text else text)
  mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
  mantissa = mantissa.rstrip("0").rstrip(".")
  power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
  return _minus(power if mantissa == "1" else f"{mantissa}·{power}")


def power_of_ten(value: float) -> str:
  """Formats a power of ten as 10 with an exponent."""
  return f"10{str(round(math.log10(value))).translate(_SUPERSCRIPTS)}"


def _minus(text: str) -> str:
  return text.replace("-", "\N{MINUS SIGN}")


def _powers(base: int, low: float, high: float) -> list[float]:
  """Returns powers of the base within the range, every second or third of many."""
  # Slightly wider, so that rounding does not lose a power at the end of the range.
  first = math.ceil(math.log(low, base) - 1e-9)
  last = math.floor(math.log(high, base) + 1e-9)
  stride = math.ceil((last - first + 1) / _MOST_TICKS) or 1
  return [float(base) ** n for n in range(first, last + 1, stride)]


def _round_steps(low: float, high: float) -> list[float]:
  """Returns about five multiples of 1, 2 or 5 times a power of ten."""
  rough = (high - low) / 5
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [round(n * step, 12) for n in range(first, last + 1)]
