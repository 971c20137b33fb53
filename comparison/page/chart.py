"""Draws a figure as SVG: text stays text, colours come from the page's style sheet.

Every point carries its numbers as data attributes and as a tooltip, so that what is shown can be
read by a program, by a mouse and by a screen reader.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from html import escape
from typing import cast

from comparison.page.figure import ESTIMATED, FITTED, Figure, Series
from comparison.page.scale import Scale, scale_of, show

# In user units, which are pixels on a screen of this width: readable on a telephone, too.
WIDTH = 400
_HEIGHT = 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 26, 40
_BAR, _BAR_GAP, _GROUP_GAP = 13, 4, 12
COLOURS = 8
# Of the series of one model: the first is solid. Long dashes are for estimates alone.
_DASHES = ("", "1.5 4", "9 3 2 3", "2 2")


@dataclasses.dataclass(frozen=True)
class Look:
  """How a series is drawn: colour and marker by what it is of, dashes by which of these it is.

  Attributes:
    colour, variant, kind: what decides.
    connected: whether a line joins the points; not where a fit does it.
  """

  colour: int
  variant: int
  kind: str

  connected: bool = True

  @property
  def classes(self) -> str:
    """For the style sheet."""
    return f"series c{self.colour} {self.kind}"

  @property
  def dashes(self) -> str:
    """A stroke-dasharray attribute, or nothing."""
    pattern = "7 5" if self.kind == ESTIMATED else _DASHES[self.variant % len(_DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def looks(figure: Figure, models: Sequence[str]) -> list[Look]:
  """A look for each series: a model has one colour in all figures, other things follow."""
  others: list[str] = []
  used: dict[tuple[int, str], int] = {}
  found = []
  for series in figure.series:
    owners = [model for model in models if _is_of(series.name, model)]
    if owners:
      colour = models.index(max(owners, key=len))
    else:
      if series.name not in others:
        others.append(series.name)
      colour = len(models) + others.index(series.name)
    colour %= COLOURS
    variant = used.get((colour, series.kind), 0)
    used[colour, series.kind] = variant + 1
    found.append(Look(colour, variant, series.kind))
  fitted = {look.colour for look in found if look.kind == FITTED}
  return [
    dataclasses.replace(look, connected=look.kind == FITTED or look.colour not in fitted)
    for look in found
  ]


def _is_of(name: str, model: str) -> bool:
  return name == model or (name.startswith(model) and not name[len(model)].isalnum())


def draw(figure: Figure, styles: Sequence[Look]) -> str:
  """The figure as an SVG element."""
  drawing = _bars(figure, styles) if figure.is_categorical else _lines(figure, styles)
  height, body = drawing
  return (
    f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
    f'aria-label="{escape(figure.title)}">{body}</svg>'
  )


def swatch(style: Look, *, as_line: bool) -> str:
  """The sample of a series for the legend; without a line where places are names."""
  style = dataclasses.replace(style, connected=style.connected and as_line)
  line = f'<path class="line" d="M1 7H33"{style.dashes}/>' if style.connected else ""
  mark = "" if style.kind == FITTED else _marker(style.colour, 17, 7)
  return (
    f'<svg class="swatch {style.classes}" viewBox="0 0 34 14" aria-hidden="true">{line}{mark}</svg>'
  )


def _lines(figure: Figure, styles: Sequence[Look]) -> tuple[int, str]:
  bottom = _HEIGHT - _BOTTOM
  x = scale_of(
    [place for series in figure.series for place in _numbers(series)],
    _LEFT,
    WIDTH - _RIGHT,
    log=figure.x.log,
    margin=0.03,
    from_zero=True,
  )
  y = scale_of(_heights(figure), bottom, _TOP, log=figure.y.log, margin=0.06, from_zero=True)
  parts = [_y_axis(figure, y), _x_axis(figure.x.label, x, bottom, _HEIGHT)]
  parts += [
    _mark(place, name, x, bottom) for place, name in figure.x.marks if x.low <= place <= x.high
  ]
  # Bands below all lines, fits below points.
  order = sorted(range(len(styles)), key=lambda n: styles[n].kind != FITTED)
  parts += [_band(figure.series[n], styles[n], x, y) for n in order]
  parts += [_line(figure.series[n], styles[n], x, y) for n in order]
  return _HEIGHT, "".join(parts)


def _numbers(series: Series) -> tuple[float, ...]:
  """The places of a line, which are no categories."""
  return cast(tuple[float, ...], series.x)


def _heights(figure: Figure) -> list[float]:
  """All values of the y axis, intervals included as far as the axis can show them."""
  return [
    value
    for series in figure.series
    for values in (series.y, series.low, series.high)
    for value in values or ()
    if not figure.y.log or value > 0
  ]


def _y_axis(figure: Figure, y: Scale) -> str:
  parts = [f'<text class="axis-label" x="0" y="12">{escape(figure.y.label)}</text>']
  for value, label in y.ticks():
    at = y(value)
    parts.append(f'<path class="grid" d="M{_LEFT} {at}H{WIDTH - _RIGHT}"/>')
    parts.append(
      f'<text class="tick" x="{_LEFT - 6}" y="{at + 4}" text-anchor="end">{label}</text>'
    )
  return "".join(parts)


def _x_axis(label: str, x: Scale, bottom: float, height: float, top: float | None = None) -> str:
  """Ticks below; with `top`, grid lines up to there."""
  parts = [
    f'<path class="axis" d="M{_LEFT if top is None else x.start} {bottom}H{WIDTH - _RIGHT}"/>'
  ]
  reach = -1e9
  for value, text in x.ticks():
    at, half = x(value), 3.6 * len(text)
    if top is not None:
      parts.append(f'<path class="grid" d="M{at} {top}V{bottom}"/>')
    parts.append(f'<path class="axis" d="M{at} {bottom}v4"/>')
    if at - half < reach + 4:
      continue
    reach = at + half
    parts.append(
      f'<text class="tick" x="{at}" y="{bottom + 17}" text-anchor="middle">{text}</text>'
    )
  middle = (x.start + x.stop) / 2
  parts.append(
    f'<text class="axis-label" x="{middle}" y="{height - 6}" text-anchor="middle">'
    f"{escape(label)}</text>"
  )
  return "".join(parts)


def _mark(place: float, name: str, x: Scale, bottom: float) -> str:
  at = x(place)
  anchor, shift = ("end", -4) if at > WIDTH / 2 else ("start", 4)
  return (
    f'<path class="mark" d="M{at} {_TOP}V{bottom}"/>'
    f'<text class="tick" x="{at + shift}" y="{bottom - 6}" text-anchor="{anchor}">'
    f"{escape(name)}</text>"
  )


def _band(series: Series, style: Look, x: Scale, y: Scale) -> str:
  if series.low is None or series.high is None or len(series.x) < 2 or not style.connected:
    return ""
  points = sorted(zip(_numbers(series), series.low, series.high, strict=True))
  upper = [f"{x(place)} {y(high)}" for place, _, high in points]
  lower = [f"{x(place)} {y(low)}" for place, low, _ in reversed(points)]
  return f'<path class="band {style.classes}" d="M{"L".join([*upper, *lower])}Z"/>'


def _line(series: Series, style: Look, x: Scale, y: Scale) -> str:
  places = [
    f"{x(place)} {y(value)}"
    for place, value in sorted(zip(_numbers(series), series.y, strict=True))
  ]
  parts = (
    [f'<path class="line" d="M{"L".join(places)}"{style.dashes}/>']
    if style.connected and len(places) > 1
    else []
  )
  for place, point in zip(_numbers(series), _points(series), strict=True):
    at_x, at_y = x(place), y(point.y)
    shape = ""
    if (
      point.low is not None and point.high is not None and (len(places) == 1 or not style.connected)
    ):
      shape = f'<path class="whisker" d="M{at_x} {y(point.low)}V{y(point.high)}"/>'
    # Many points make one thick line of their markers.
    hidden = style.kind == FITTED or len(places) > 24
    shape += (
      f'<circle cx="{at_x}" cy="{at_y}" r="4" class="unseen"/>'
      if hidden
      else _marker(style.colour, at_x, at_y)
    )
    parts.append(point.wrap(series.name, shape))
  return _group(series, style, parts)


def _bars(figure: Figure, styles: Sequence[Look]) -> tuple[int, str]:
  """Horizontal, the category's name above its bars: names may be long."""
  categories = list(dict.fromkeys(itertools.chain(*(series.x for series in figure.series))))
  values = _heights(figure)
  # A bar's length means something from zero on alone; other values are dots.
  as_bars = min(values) >= 0 and not figure.y.log
  x = scale_of(
    [*values, 0.0] if not figure.y.log else values,
    8,
    WIDTH - 62,
    log=figure.y.log,
    margin=0.02,
    from_zero=True,
  )
  row = _BAR + _BAR_GAP
  group = 18 + row * len(figure.series) + _GROUP_GAP
  bottom = 6 + group * len(categories)
  height = bottom + _BOTTOM
  parts = [_x_axis(figure.y.label, x, bottom, height, 4)]
  if x.low < 0 < x.high:
    parts.append(f'<path class="axis" d="M{x(0)} 4V{bottom}"/>')
  for index, category in enumerate(categories):
    top = 6 + group * index
    parts.append(f'<text class="category" x="8" y="{top + 12}">{escape(str(category))}</text>')
  for number, (series, style) in enumerate(zip(figure.series, styles, strict=True)):
    drawn = []
    for point in _points(series):
      top = 6 + group * categories.index(point.x) + 18 + row * number
      drawn.append(point.wrap(series.name, _bar(point, style, x, top, as_bars)))
    parts.append(_group(series, style, drawn))
  return height, "".join(parts)


def _bar(point: _Point, style: Look, x: Scale, top: float, as_bars: bool) -> str:
  middle, end = top + _BAR / 2, x(point.y)
  shape = ""
  if as_bars:
    width = f"{max(end - x.start, 0.5):.2f}"
    shape = f'<rect class="bar" x="{x.start}" y="{top}" width="{width}" height="{_BAR}"/>'
  right = end
  if point.low is not None and point.high is not None:
    low, right = x(point.low), x(point.high)
    ends = f"M{low} {middle - 3}v6M{right} {middle - 3}v6"
    shape += f'<path class="whisker" d="M{low} {middle}H{right}{ends}"/>'
  if not as_bars:
    shape += _marker(style.colour, end, middle)
  label = (
    f'<text class="value" x="{max(right, end) + 7:.2f}" y="{middle + 4}">{show(point.y, 3)}</text>'
  )
  return shape + label


@dataclasses.dataclass(frozen=True)
class _Point:
  x: float | str
  y: float
  low: float | None
  high: float | None

  def wrap(self, name: str, shape: str) -> str:
    """The drawn point with its numbers."""
    place = self.x if isinstance(self.x, str) else show(self.x)
    told = f"{name}, {place}: {show(self.y)}"
    numbers = {"x": self.x, "y": self.y}
    if self.low is not None and self.high is not None:
      numbers |= {"low": self.low, "high": self.high}
      told += f" ({show(self.low)} to {show(self.high)})"
    attributes = "".join(
      f' data-{key}="{escape(value if isinstance(value, str) else json.dumps(value))}"'
      for key, value in numbers.items()
    )
    return f'<g class="point"{attributes}><title>{escape(told)}</title>{shape}</g>'


def _points(series: Series) -> list[_Point]:
  nothing = [None] * len(series.x)
  columns = series.x, series.y, series.low or nothing, series.high or nothing
  return [_Point(*values) for values in zip(*columns, strict=True)]


def _group(series: Series, style: Look, parts: Sequence[str]) -> str:
  return (
    f'<g class="{style.classes}" data-series="{escape(series.name)}" data-kind="{series.kind}">'
    f"{''.join(parts)}</g>"
  )


def _marker(shape: int, x: float, y: float) -> str:
  """A marker that can be told from the others without its colour."""
  match shape % 4:
    case 0:
      return f'<circle class="marker" cx="{x}" cy="{y}" r="3.6"/>'
    case 1:
      return f'<path class="marker" d="M{x} {y}m-4.4 3.4h8.8l-4.4 -7.8z"/>'
    case 2:
      return f'<rect class="marker" x="{x - 3.3:.2f}" y="{y - 3.3:.2f}" width="6.6" height="6.6"/>'
    case _:
      return f'<path class="marker" d="M{x} {y}m0 -4.8l4.6 4.8l-4.6 4.8l-4.6 -4.8z"/>'
