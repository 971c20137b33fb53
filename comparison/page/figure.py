"""What a comparison shows: series of numbers with their spread, and a sentence that says what they
say.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

MEASURED = "measured"
ESTIMATED = "estimated"
FITTED = "fitted"
KINDS = (MEASURED, ESTIMATED, FITTED)


# Of a series on the x axis: numbers, or names of categories.
Places = tuple[float, ...] | tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """One line, or one set of bars, of a figure.

  Attributes:
    name: as the legend says it: a model, an implementation.
    x: places on the axis: numbers, or names of categories.
    y: a value per place.
    low, high: ends of an interval around each value (the figure's `spread` says which); None if
      there is none.
    kind: 'measured'; 'estimated' for what was computed for hardware that is not here; 'fitted' for
      a curve through what was measured.
  """

  name: str
  x: Places
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
    if self.kind not in KINDS:
      raise ValueError(f"series {self.name!r}: kind={self.kind!r} is not {' or '.join(KINDS)}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
  """One axis of a figure.

  Attributes:
    label: what it shows, with the unit.
    log: whether it is logarithmic.
    marks: places to point out with a line across the figure, such as the training length, and their
      names.
  """

  label: str
  log: bool = False
  marks: tuple[tuple[float, str], ...] = ()


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
    conditions: what the figure depends on, by name: config, sizes, seeds, tokens. Hardware and
      versions are the report's.
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

  def __post_init__(self):
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", self.name):
      raise ValueError(
        f"figure {self.name!r}: the name must be a word that can stand in an address."
      )
    names = [series.name for series in self.series]
    if not names or len(set(names)) < len(names):
      raise ValueError(f"figure {self.name!r} needs series of different names, not {names}.")
    if len({isinstance(place, str) for series in self.series for place in series.x}) > 1:
      raise ValueError(f"figure {self.name!r} mixes numbers and categories on its x axis.")
    for axis, letter in ((self.x, "x"), (self.y, "y")):
      values = [value for series in self.series for value in getattr(series, letter)]
      if axis.log and any(isinstance(value, str) or value <= 0 for value in values):
        raise ValueError(
          f"figure {self.name!r}: the logarithmic axis {axis.label!r} has a value that is not "
          "positive."
        )

  @property
  def is_categorical(self) -> bool:
    """Whether places on the x axis are names."""
    return any(isinstance(place, str) for series in self.series for place in series.x)

  def record(self) -> dict[str, Any]:
    """Everything as plain values, as `report/data.json` holds it."""
    return dataclasses.asdict(self)

  @classmethod
  def of_record(cls, record: dict[str, Any]) -> Figure:
    """The inverse of `record`, also after a way through JSON, which has no tuples."""
    fields = dict(record)
    fields["x"], fields["y"] = _axis(record["x"]), _axis(record["y"])
    fields["series"] = tuple(_series(entry) for entry in record["series"])
    fields["conditions"] = tuple((name, value) for name, value in record["conditions"])
    return cls(**fields)


def _axis(record: dict[str, Any]) -> Axis:
  fields = dict(record)
  fields["marks"] = tuple((place, name) for place, name in record["marks"])
  return Axis(**fields)


def _series(record: dict[str, Any]) -> Series:
  fields: dict[str, Any] = {
    name: tuple(value) if isinstance(value, list | tuple) else value
    for name, value in record.items()
  }
  return Series(**fields)
