"""Writes the figures of a comparison for papers: pictures, and tables in CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from base import small_files
from comparison.page import chart, report
from comparison.page.chart import Look
from comparison.page.figure import ESTIMATED, FITTED, MEASURED, PUBLISHED, Figure, Series
from comparison.page.scale import scale_of, show

# Of a column of a paper, in inches.
_WIDTH, _HEIGHT = 4.2, 3.0
_DOTS_PER_INCH = 200
_MARKERS = ("o", "^", "s", "D")
_DASHES = ("-", (0, (1.5, 2)), (0, (6, 2, 2, 2)), (0, (2, 2)))
# What LaTeX reads as its own.
_LATEX = {
  "\\": r"\textbackslash{}",
  "~": r"\textasciitilde{}",
  "^": r"\textasciicircum{}",
  "<": r"\textless{}",
  ">": r"\textgreater{}",
  "|": r"\textbar{}",
  **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}
_SUPERSCRIPT = re.compile("10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def write(figures: Sequence[Figure], models: Sequence[str], folder: Path) -> list[Path]:
  """Writes NAME.png, NAME.pdf, NAME.csv and NAME.tex of each figure.

  Args:
    figures: the figures.
    models: names that have the same colours in all figures.
    folder: where to; created if missing.

  Returns:
    The files.
  """
  folder.mkdir(parents=True, exist_ok=True)
  files = []
  for figure in figures:
    contents = {"csv": comma_separated(figure), "tex": latex(figure), **_pictures(figure, models)}
    for ending, content in contents.items():
      files.append(folder / f"{figure.name}.{ending}")
      small_files.replace(files[-1], content, durable=False)
  return files


def comma_separated(figure: Figure) -> str:
  """Formats the numbers of a figure as CSV, a line per point, with all digits."""
  text = io.StringIO()
  lines = csv.writer(text, lineterminator="\n")
  lines.writerow(["series", "kind", figure.x.label, figure.y.label, "low", "high"])
  for series in figure.series:
    blank = [""] * len(series.x)
    columns = (series.x, series.y, series.low or blank, series.high or blank)
    for numbers in zip(*columns, strict=True):
      lines.writerow([series.name, series.kind, *numbers])
  return text.getvalue()


def latex(figure: Figure) -> str:
  """Formats the numbers of a figure as a LaTeX table for the package booktabs, a row per x.

  Intervals stand behind the values, in brackets. The finding is a comment.
  """
  places = report.places(figure)
  head = " & ".join(_escaped(name) for name in (figure.x.label, *map(_name, figure.series)))
  lines = [
    _comment(f"{figure.title}: {figure.finding}"),
    _comment(figure.y.label + (f"; in brackets: {figure.spread}" if figure.spread else "")),
    f"\\begin{{tabular}}{{l{'r' * len(figure.series)}}}",
    "\\toprule",
    f"{head} \\\\",
    "\\midrule",
  ]
  for place in places:
    name = _escaped(place) if isinstance(place, str) else _number(place)
    cells = " & ".join([name, *(_cell(series, place) for series in figure.series)])
    lines.append(f"{cells} \\\\")
  return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _cell(series: Series, place: float | str) -> str:
  if place not in series.x:
    return "--"
  index: int = list[Any](series.x).index(place)
  text = _number(series.y[index])
  if series.low is not None and series.high is not None:
    text += f" [{_number(series.low[index])}, {_number(series.high[index])}]"
  return text


def _number(value: float) -> str:
  text = show(value).replace("\N{MINUS SIGN}", "-")
  text = _SUPERSCRIPT.sub(lambda m: f"10^{{{m[1].translate(_DIGITS)}}}", text)
  return f"${text.replace('·', chr(92) + 'cdot ').replace(',', '{,}')}$"


def _comment(text: str) -> str:
  return f"% {' '.join(text.split())}"


def _escaped(text: str) -> str:
  return "".join(_LATEX.get(letter, letter) for letter in text)


def _plain(text: str) -> str:
  """Text for matplotlib, which reads what is between two dollars as a formula."""
  return text.replace("$", r"\$")


def _pictures(figure: Figure, models: Sequence[str]) -> dict[str, bytes]:
  """Draws a figure as PNG and PDF."""
  import matplotlib
  from matplotlib.figure import Figure as Canvas

  styles = chart.looks(figure, models)
  result = {}
  # Fonts as outlines of type 42, as journals ask; and no dates, so that equal figures are equal.
  with matplotlib.rc_context({"pdf.fonttype": 42, "font.size": 9}):
    canvas = Canvas(figsize=(_WIDTH, _height(figure)), layout="constrained")
    axes = canvas.subplots()
    draw = _bars if figure.is_categorical else _lines
    draw(axes, figure, styles)
    axes.set_title(_plain(figure.title), fontsize=9, loc="left", wrap=True)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, list(map(_plain, labels)), frameon=False)
    for ending, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
      picture = io.BytesIO()
      canvas.savefig(picture, format=ending, dpi=_DOTS_PER_INCH, metadata=metadata)
      result[ending] = picture.getvalue()
  return result


def _height(figure: Figure) -> float:
  if not figure.is_categorical:
    return _HEIGHT
  return max(_HEIGHT, 0.9 + 0.22 * len(report.places(figure)) * (len(figure.series) + 1))


def _name(series: Series) -> str:
  """Its name, and that it is not measured where it is not."""
  return f"{series.name} ({series.kind})" if series.kind != MEASURED else series.name


def _lines(axes: Any, figure: Figure, styles: Sequence[Look]) -> None:
  colours = report.colours()
  for series, style in zip(figure.series, styles, strict=True):
    colour = colours[style.colour]
    dashes = (0, (7, 5)) if series.kind == ESTIMATED else _DASHES[style.variant % len(_DASHES)]
    axes.plot(
      series.x,
      series.y,
      label=_name(series),
      color=colour,
      linestyle=dashes if style.connected else "none",
      marker=None if series.kind == FITTED else _MARKERS[style.colour % len(_MARKERS)],
      markersize=4,
      markerfacecolor="none" if series.kind == PUBLISHED else colour,
      linewidth=1.2,
    )
    if series.low is not None and series.high is not None:
      axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
  for place, name in figure.x.marks:
    axes.axvline(place, color="0.6", linewidth=0.8, linestyle=":")
    axes.annotate(
      _plain(name), (place, 1.0), xycoords=("data", "axes fraction"), fontsize=7, color="0.4"
    )
  axes.set(xlabel=_plain(figure.x.label), ylabel=_plain(figure.y.label))
  if figure.x.log:
    _make_log(axes, "x", [x for series in figure.series for x in series.x])
  if figure.y.log:
    _make_log(axes, "y", [y for series in figure.series for y in series.y])
  axes.grid(alpha=0.3)


def _bars(axes: Any, figure: Figure, styles: Sequence[Look]) -> None:
  """Draws horizontal bars from zero, or points where a length would mean nothing, as the page."""
  colours, places = report.colours(), report.places(figure)
  heights = list(itertools.chain(*(series.y for series in figure.series)))
  as_bars = min(heights) >= 0 and not figure.y.log
  thickness = 0.8 / len(figure.series)
  for number, (series, style) in enumerate(zip(figure.series, styles, strict=True)):
    at = [places.index(place) + (number + 0.5) * thickness - 0.4 for place in series.x]
    if as_bars:
      axes.barh(at, series.y, thickness * 0.9, label=_name(series), color=colours[style.colour])
    else:
      marker = _MARKERS[style.colour % len(_MARKERS)]
      colour = colours[style.colour]
      axes.plot(series.y, at, label=_name(series), color=colour, marker=marker, linestyle="none")
    if series.low is not None and series.high is not None:
      pairs = zip(series.y, series.low, series.high, strict=True)
      # A median may lie outside of its interval by rounding.
      errors = [[max(y - low, 0.0), max(high - y, 0.0)] for y, low, high in pairs]
      axes.errorbar(
        series.y, at, xerr=list(zip(*errors, strict=True)), fmt="none", ecolor="0.2", elinewidth=0.8
      )
  axes.set_yticks(range(len(places)), [_plain(str(place)) for place in places])
  axes.set_ylim(len(places) - 0.5, -0.5)  # the first on top
  axes.set(xlabel=_plain(figure.y.label))
  if figure.y.log:
    _make_log(axes, "x", heights)
  axes.grid(alpha=0.3, axis="x")


def _make_log(axes: Any, letter: str, values: Sequence[Any]) -> None:
  """Makes an axis logarithmic, with the ticks of the page: plain numbers where they are short."""
  from matplotlib.ticker import NullLocator

  axes.set(**{f"{letter}scale": "log"})
  axis = axes.xaxis if letter == "x" else axes.yaxis
  ticks = scale_of(values, 0, 1, log=True, margin=0.05, from_zero=False).ticks()
  axis.set_ticks([place for place, _ in ticks], [label for _, label in ticks])
  axis.set_minor_locator(NullLocator())
