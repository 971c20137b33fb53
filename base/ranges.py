"""Types of options with ranges of allowed values.

An option's annotation has its range: `window: Count = 1024`. Loading a configuration refuses other
values; type checkers see the plain type.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Annotated, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
  """Marks a number as one in a range.

  Attributes:
    least, most: inclusive ends; None for no limit.
    above, below: exclusive ends.
    also: a further allowed number with a special meaning.
  """

  least: float | None = None
  most: float | None = None
  above: float | None = None
  below: float | None = None
  also: float | None = None

  def fault(self, value: float) -> str | None:
    """Describes the violated range; None if the number is in it.

    NaN and infinities are in no range.
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
  """Marks an option that cannot change a result: runs that differ only in it are the same run."""


# For loops that are unrolled in a trace: more would take forever.
Depth = Annotated[int, Range(least=1, most=100_000)]
# The lags of a short convolution are unrolled too, in every layer.
ConvWidth = Annotated[int, Range(least=1, most=256)]
# So are the delta rule's corrections of a token that is decoded.
Corrections = Annotated[int, Range(least=1, most=256)]
Count = Annotated[int, Range(least=1, most=2**31 - 1)]
CountFromZero = Annotated[int, Range(least=0, most=2**31 - 1)]
# Shards along a mesh axis; -1 takes the remaining devices.
Shards = Annotated[int, Range(least=1, also=-1)]
# Seeds that NumPy and JAX both accept.
Seed = Annotated[int, Range(least=0, most=2**63 - 1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
# A factor that makes a number larger.
Factor = Annotated[float, Range(above=1)]
Share = Annotated[float, Range(least=0, most=1)]
# Decay of a moment: an average over 1 / (1 - decay) values.
Decay = Annotated[float, Range(least=0, below=1)]
ZeroStage = Annotated[int, Range(least=0, most=3)]
# Dtypes of activations and parameters.
FloatName = Literal["float32", "bfloat16", "float16"]
