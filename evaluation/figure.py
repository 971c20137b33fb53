"""What a comparison shows: series of numbers with their spread, and a sentence that says what they say."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

MEASURED = "measured"
ESTIMATED = "estimated"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """One line, or one set of bars, of a figure.

  Attributes:
    name: as the legend says it: a model, an implementation.
    x: places on the axis: numbers, or names of categories.
    y: a value per place.
    low, high: ends of an interval around each value (the figure's `spread` says which); None if there
      is none.
    kind: 'measured', or 'estimated' for what was computed for hardware that is not here.
  """

  name: str
  x: tuple[float, ...] | tuple[str, ...]
  y: tuple[float, ...]
  low: tuple[float, ...] | None = None
  high: tuple[float, ...] | None = None
  kind: str = MEASURED

  def __post_init__(self):
    lengths = {
      len(values) for values in (self.x, self.y, self.low, self.high) if values is not None
    }
    if len(lengths) != 1:
      raise ValueError(f"series {self.name!r}: x, y, low and high differ in length: {lengths}.")
    if not all(math.isfinite(value) for value in self.y):
      raise ValueError(f"series {self.name!r} has a value that is not finite: {self.y}.")
    if self.kind not in (MEASURED, ESTIMATED):
      raise ValueError(
        f"series {self.name!r}: kind={self.kind!r} is not {MEASURED} or {ESTIMATED}."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
  """One axis of a figure: its label with the unit, and whether it is logarithmic."""

  label: str
  log: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
  """One picture of a comparison.

  Attributes:
    name: unique within a report; a word that can stand in an address.
    title: what is shown.
    finding: one sentence that says what the numbers say, made from them; where they show no
      difference, it says so.
    x, y: the axes.
    series: what is drawn.
    spread: what `low` and `high` are, such as '95% interval over 3 seeds'; '' if none is drawn.
    conditions: what the figure depends on, by name: config, sizes, seeds, tokens. Hardware and versions
      are the report's.
    source: the part of the paper that it repeats, such as 'section 4.3'.
  """

  name: str
  title: str
  finding: str
  x: Axis
  y: Axis
  series: tuple[Series, ...]
  spread: str = ""
  conditions: tuple[tuple[str, str], ...] = ()
  source: str = ""

  def record(self) -> dict[str, Any]:
    """Everything as plain values, as `report/data.json` holds it."""
    return dataclasses.asdict(self)

  @classmethod
  def of_record(cls, record: dict[str, Any]) -> Figure:
    """The inverse of `record`, also after a way through JSON, which has no tuples."""
    fields = dict(record)
    fields["x"], fields["y"] = Axis(**record["x"]), Axis(**record["y"])
    fields["series"] = tuple(_series(entry) for entry in record["series"])
    fields["conditions"] = tuple((name, value) for name, value in record["conditions"])
    return cls(**fields)


def _series(record: dict[str, Any]) -> Series:
  return Series(
    **{
      name: tuple(value) if isinstance(value, list | tuple) else value
      for name, value in record.items()
    }
  )
