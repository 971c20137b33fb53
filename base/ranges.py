"""Types of options with the range that their values must be in.

An option's annotation says what it may be: `window: Count = 1024`. Whoever reads a configuration
refuses what is outside; type checkers see the plain type.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Annotated, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
  """Marks a number as one of a range.

  Attributes:
    least, most: the ends, which belong to it; None for no end.
    above, below: ends that do not belong to it.
    also: one more number that means something else.
  """

  least: float | None = None
  most: float | None = None
  above: float | None = None
  below: float | None = None
  also: float | None = None

  def fault(self, value: float) -> str | None:
    """What a number must be and is not; None if it is in the range.

    NaN and the infinities are in none.
    """
    if not math.isfinite(value):
      return "a finite number"
    ends = {
      "at least": (self.least, operator.ge),
      "above": (self.above, operator.gt),
      "at most": (self.most, operator.le),
      "below": (self.below, operator.lt),
    }
    for words, (end, holds) in ends.items():
      if end is not None and not holds(value, end) and value != self.also:
        return f"{words} {end}" + ("" if self.also is None else f", or {self.also}")
    return None


@dataclasses.dataclass(frozen=True)
class Immaterial:
  """Marks an option on which no result depends: runs that differ in it alone are the same run."""


# Of loops that are traced one by one: more would never be built.
Depth = Annotated[int, Range(least=1, most=100_000)]
Count = Annotated[int, Range(least=1, most=2**31 - 1)]
CountFromZero = Annotated[int, Range(least=0, most=2**31 - 1)]
# Shards along a mesh axis; -1 takes the devices that are left.
Shards = Annotated[int, Range(least=1, also=-1)]
# What NumPy and JAX both take.
Seed = Annotated[int, Range(least=0, most=2**63 - 1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
# A factor that makes a number larger.
Factor = Annotated[float, Range(above=1)]
Share = Annotated[float, Range(least=0, most=1)]
# Of a moment: an average over 1 / (1 - decay) values.
Decay = Annotated[float, Range(least=0, below=1)]
ZeroStage = Annotated[int, Range(least=0, most=3)]
# Types that models compute in and store parameters in.
FloatName = Literal["float32", "bfloat16", "float16"]
