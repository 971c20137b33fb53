"""Figures of a comparison: series of numbers with their spread, and a sentence with the finding."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

MEASURED = "measured"
ESTIMATED = "estimated"
FITTED = "fitted"
PUBLISHED = "published"
KINDS = (MEASURED, ESTIMATED, FITTED, PUBLISHED)


# The x of a series: numbers, or names of categories.
Places = tuple[float, ...] | tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """A line, or a set of bars, of a figure.

  Attributes:
    name: the name in the legend: a model, an implementation.
    x: numbers, or names of categories.
    y: a value per x.
    low, high: ends of an interval around each value (see the figure's `spread`); None for none.
    kind: 'measured'; 'estimated' if computed for hardware that is not attached; 'fitted' for a
      curve through measured values; 'published' for values that others have reported.
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
  """An axis of a figure.

  Attributes:
    label: its quantity and unit.
    log: whether it is logarithmic.
    marks: values to mark with a line across the figure, such as the training length, and their
      names.
  """

  label: str
  log: bool = False
  marks: tuple[tuple[float, str], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """A question that a figure answers with a number for each model, for the table on top of a page.

  Attributes:
    text: the question in a few words, with the quantity.
    better: 'lower' or 'higher'.
    at: the x of the answers; None is the last of each series.
    unit: unit of the numbers; 'B' are bytes.
    role: 'loss' or 'cost' if `comparison.page.trade_offs` sets the answers against each other.
  """

  text: str
  better: str
  at: float | str | None = None
  unit: str = ""
  role: str = ""

  def __post_init__(self):
    if self.better not in ("lower", "higher"):
      raise ValueError(f"question {self.text!r}: better={self.better!r} is not lower or higher.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
  """A difference that a figure tests, for the correction of all of a page together.

  Attributes:
    text: what is compared, such as 'Griffin minus MQA Transformer'.
    value: the mean difference.
    low, high: its interval, not corrected.
    p: two-sided p value of Student's t test that there is no difference.
  """

  text: str
  value: float
  low: float
  high: float
  p: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
  """A figure of a comparison.

  Attributes:
    name: unique within a report, and valid in a URL.
    title: the title.
    finding: one sentence with the result, computed from the numbers, also if there is no
      difference.
    x, y: the axes.
    series: the series to draw.
    spread: meaning of `low` and `high`, such as '95% interval over 3 seeds'; '' for none.
    conditions: conditions of the measurement by name: config, sizes, seeds, tokens. The report has
      the hardware and versions.
    source: the repeated part of the paper, such as 'section 4.3'.
    asks: questions that the series named by a model answer.
    differences: the differences that are tested, of at least three seeds.
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
  asks: tuple[Question, ...] = ()
  differences: tuple[Difference, ...] = ()

  def __post_init__(self):
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", self.name):
      raise ValueError(f"figure {self.name!r}: the name must be valid in a URL.")
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
    """Whether the x axis has categories."""
    return any(isinstance(place, str) for series in self.series for place in series.x)

  def record(self) -> dict[str, Any]:
    """Converts the figure to plain values, as in `report/data.json`."""
    return dataclasses.asdict(self)

  @classmethod
  def of_record(cls, record: dict[str, Any]) -> Figure:
    """Inverts `record`, also after JSON, which has no tuples."""
    fields = dict(record)
    fields["x"], fields["y"] = _axis(record["x"]), _axis(record["y"])
    fields["series"] = tuple(_series(entry) for entry in record["series"])
    fields["conditions"] = tuple((name, value) for name, value in record["conditions"])
    # Earlier pages have none.
    fields["asks"] = tuple(Question(**entry) for entry in record.get("asks", ()))
    noted = record.get("differences", ())
    fields["differences"] = tuple(Difference(**entry) for entry in noted)
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
