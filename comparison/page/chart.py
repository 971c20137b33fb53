"""Draws a figure as SVG, with text as text and colours from the page's style sheet.

Every point has its numbers as data attributes and in a tooltip, for programs, mice and screen
readers.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from html import escape
from typing import cast

from comparison.page.figure import ESTIMATED, FITTED, PUBLISHED, Figure, Series
from comparison.page.scale import Scale, scale_of, show

# In user units: pixels on a screen of this width, readable on a phone too.
WIDTH = 400
_HEIGHT = 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 26, 40
_BAR, _BAR_GAP, _GROUP_GAP = 13, 4, 12
COLOURS = 8
# Dashes of one model's series: the first is solid. Long dashes are only for estimates.
_DASHES = ("", "1.5 4", "9 3 2 3", "2 2")


@dataclasses.dataclass(frozen=True)
class Look:
  """Style of a series: its colour and marker by model, its dashes by series of the model.

  Attributes:
    colour, variant, kind: number of the model, number among its series, and kind of the series.
    connected: whether a line joins the points; not if a fit does, and not published points.
  """

  colour: int
  variant: int
  kind: str

  connected: bool = True

  @property
  def classes(self) -> str:
    """Classes for the style sheet."""
    return f"series c{self.colour} {self.kind}"

  @property
  def dashes(self) -> str:
    """A stroke-dasharray attribute, or ''."""
    pattern = "7 5" if self.kind == ESTIMATED else _DASHES[self.variant % len(_DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def looks(figure: Figure, models: Sequence[str]) -> list[Look]:
  """Returns the style of each series: models have the same colour in all figures."""
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
  return [dataclasses.replace(look, connected=_is_connected(look, fitted)) for look in found]


def _is_connected(look: Look, fitted: set[int]) -> bool:
  return look.kind == FITTED or (look.kind != PUBLISHED and look.colour not in fitted)


def _is_of(name: str, model: str) -> bool:
  return name == model or (name.startswith(model) and not name[len(model)].isalnum())


def draw(figure: Figure, styles: Sequence[Look]) -> str:
  """Draws the figure as an SVG element."""
  drawing = _bars(figure, styles) if figure.is_categorical else _lines(figure, styles)
  height, body = drawing
  return (
    f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
    f'aria-label="{escape(figure.title)}">{body}</svg>'
  )


def swatch(style: Look, *, as_line: bool) -> str:
  """Draws the legend's sample of a series; without a line if the x axis has categories."""
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
  # Bands are below all lines, fits below points.
  order = sorted(range(len(styles)), key=lambda n: styles[n].kind != FITTED)
  parts += [_band(figure.series[n], styles[n], x, y) for n in order]
  parts += [_line(figure.series[n], styles[n], x, y) for n in order]
  return _HEIGHT, "".join(parts)


def _numbers(series: Series) -> tuple[float, ...]:
  """Returns the x of a line, which are numbers."""
  return cast(tuple[float, ...], series.x)


def _heights(figure: Figure) -> list[float]:
  """Returns all values of the y axis, including ends of intervals that the axis can show."""
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
  """Draws the x axis with ticks; with `top`, grid lines up to there."""
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
    # Markers of many points would merge into a thick line.
    hidden = style.kind == FITTED or len(places) > 24
    shape += (
      f'<circle cx="{at_x}" cy="{at_y}" r="4" class="unseen"/>'
      if hidden
      else _marker(style.colour, at_x, at_y)
    )
    parts.append(point.wrap(series.name, shape))
  return _group(series, style, parts)


def _bars(figure: Figure, styles: Sequence[Look]) -> tuple[int, str]:
  """Draws horizontal bars below their category's name, which may be long."""
  categories = list(dict.fromkeys(itertools.chain(*(series.x for series in figure.series))))
  values = _heights(figure)
  # The length of a bar is meaningful only from zero; other values are dots.
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
    """Wraps a drawn point with its numbers."""
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
  """Draws a marker, which differs from others also without colour."""
  match shape % 4:
    case 0:
      return f'<circle class="marker" cx="{x}" cy="{y}" r="3.6"/>'
    case 1:
      return f'<path class="marker" d="M{x} {y}m-4.4 3.4h8.8l-4.4 -7.8z"/>'
    case 2:
      return f'<rect class="marker" x="{x - 3.3:.2f}" y="{y - 3.3:.2f}" width="6.6" height="6.6"/>'
    case _:
      return f'<path class="marker" d="M{x} {y}m0 -4.8l4.6 4.8l-4.6 4.8l-4.6 -4.8z"/>'
