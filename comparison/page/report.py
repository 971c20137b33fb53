"""Writes the page and the data file of a comparison."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from base import small_files
from base.wording import plural
from comparison.page import chart, corrections, verdict
from comparison.page.figure import MEASURED, Figure, Series
from comparison.page.scale import show

PAGE_FILE = "index.html"
DATA_FILE = "data.json"
_STYLE = Path(__file__).with_name("report.css")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
  """The results of a part.

  Attributes:
    name: the part's name, as on the command line.
    figures: its figures; empty if it was not measured.
    left_out: says what the part leaves out here and why; '' if nothing.
  """

  name: str
  figures: tuple[Figure, ...] = ()
  left_out: str = ""

  @property
  def title(self) -> str:
    """The name for display."""
    return self.name.replace("_", " ").capitalize()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """The report of a comparison.

  Attributes:
    title: title of the page.
    sections: sections in order, including parts that are not measured.
    models: names of the models in order: they have the first colours.
    seeds: seeds of the training runs.
    seeds_of: seeds of each model, if they differ.
    notes: sentences on the runs.
    hardware, versions: see `comparison.machine`.
    config: the comparison's configuration, as text.
    command: the command that continues or repeats it.
    made: time of writing, as ISO 8601.
  """

  title: str
  sections: tuple[Section, ...]
  models: tuple[str, ...]
  seeds: tuple[int, ...]
  hardware: Mapping[str, str]
  versions: Mapping[str, str]
  config: str
  command: str
  made: str
  seeds_of: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()

  def __post_init__(self):
    names = [figure.name for figure in self.figures]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
      raise ValueError(
        f"several figures have the name {', '.join(twice)}. Give parts of one class different "
        "names."
      )

  @property
  def figures(self) -> list[Figure]:
    """The figures of all sections."""
    return [figure for section in self.sections for figure in section.figures]

  def data(self) -> dict[str, Any]:
    """Returns all plotted numbers and their conditions, as JSON values."""
    return {
      "title": self.title,
      "made": self.made,
      "command": self.command,
      "hardware": dict(self.hardware),
      "versions": dict(self.versions),
      "models": list(self.models),
      "seeds": list(self.seeds),
      "seeds_of": {model: list(seeds) for model, seeds in self.seeds_of.items()},
      "notes": list(self.notes),
      "parts": {
        section.name: [figure.name for figure in section.figures] or None
        for section in self.sections
      },
      "left_out": {one.name: one.left_out for one in self.sections if one.left_out},
      "figures": [figure.record() for figure in self.figures],
      "config": self.config,
    }

  def write(self, folder: Path) -> Path:
    """Writes the page and the data; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    small_files.replace(
      folder / DATA_FILE, json.dumps(self.data(), indent=1, allow_nan=False) + "\n"
    )
    small_files.replace(folder / PAGE_FILE, self.page())
    return folder / PAGE_FILE

  def page(self) -> str:
    """Formats the page: a self-contained HTML file without scripts."""
    sections = "".join(self._section(section) for section in self.sections)
    return document(self.title, self._lead(), self._findings(), sections, self._provenance())

  def seeds_text(self) -> str:
    """Lists the seeds, by model where they differ."""
    return seeds_text(self.seeds, self.seeds_of)

  def _lead(self) -> str:
    count = len(next(iter(self.seeds_of.values()), self.seeds))
    seeds = plural(count, "seed") + (" each" if self.seeds_of else "")
    names = ", ".join(self.models)
    where = ", ".join(self.hardware.values())
    return " ".join([f"{names}. {seeds}; {where}; {self.made[:10]}.", *self.notes])

  def _findings(self) -> str:
    """The table of verdicts; folded, the differences and all findings."""
    lines = [
      f'<li><a href="#{figure.name}">{escape(figure.title)}</a>'
      f"<span>{escape(figure.finding)}</span></li>"
      for figure in self.figures
    ]
    listed = f'<ul class="findings">{"".join(lines)}</ul>' if lines else ""
    table = verdict.table(self.figures, self.models) + corrections.table(self.figures)
    if not table:
      return listed
    return f"{table}<details><summary>Every finding in a sentence</summary>{listed}</details>"

  def _section(self, section: Section) -> str:
    body = f'<p class="missing">{escape(section.left_out)}</p>' if section.left_out else ""
    if section.figures:
      body += f'<div class="figures">{"".join(map(self._figure, section.figures))}</div>'
    elif not body:
      body = (
        '<p class="missing">Not measured yet. The same command continues; '
        f"<code>--only={section.name}</code> measures only this.</p>"
      )
    return f'<section id="part-{section.name}"><h2>{escape(section.title)}</h2>{body}</section>\n'

  def _figure(self, figure: Figure) -> str:
    return figure_element(figure, self.models, self._conditions(figure))

  def _conditions(self, figure: Figure) -> str:
    named = [f"{name} {value}" for name, value in figure.conditions]
    versions = [
      f"{name} {self.versions[name]}" for name in ("jax", "python") if name in self.versions
    ]
    return (
      "; ".join(filter(None, [figure.spread, *named, *self.hardware.values(), *versions])) + "."
    )

  def _provenance(self) -> str:
    facts = {
      **self.hardware,
      "versions": ", ".join(f"{name} {version}" for name, version in self.versions.items()),
      "seeds": self.seeds_text(),
      "made": self.made,
    }
    rows = "".join(
      f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items()
    )
    return (
      f'<h2>Provenance</h2><dl class="facts">{rows}<dt>command</dt>'
      f"<dd><code>{escape(self.command)}</code></dd>"
      f"<dt>numbers</dt><dd>{DATA_FILE}, in the folder of this page</dd></dl>"
      f"<details><summary>Configuration</summary><pre>{escape(self.config)}</pre></details>"
    )


def seeds_text(seeds: Sequence[int], seeds_of: Mapping[str, Sequence[int]]) -> str:
  """Lists seeds: by model, if `seeds_of` has them."""
  if not seeds_of:
    return ", ".join(map(str, seeds))
  return "; ".join(f"{model} {', '.join(map(str, own))}" for model, own in seeds_of.items())


def document(title: str, lead: str, summary: str, body: str, footer: str = "") -> str:
  """Formats a page: a self-contained HTML file without scripts.

  Args:
    title, lead: the heading and the line below it, as text.
    summary, body, footer: HTML.
  """
  style = _STYLE.read_text(encoding="utf-8")
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
    f"<style>\n{style}</style></head>\n"
    f"<body><header><h1>{escape(title)}</h1>"
    f'<p class="lead">{escape(lead)}</p>{summary}</header>\n'
    f"<main>{body}</main>\n<footer>{footer}</footer></body></html>\n"
  )


def figure_element(figure: Figure, models: Sequence[str], conditions: str) -> str:
  """Formats a figure with its legend and its numbers.

  Args:
    figure: the figure.
    models: names that have the same colours in all figures.
    conditions: the line below it.
  """
  styles = chart.looks(figure, models)
  legend = "".join(
    f'<li data-legend="{escape(series.name)}">'
    f"{chart.swatch(style, as_line=not figure.is_categorical)}<span>{escape(series.name)}"
    f"{_remark(series)}</span></li>"
    for series, style in zip(figure.series, styles, strict=True)
  )
  source = f' <span class="source">{escape(figure.source)}</span>' if figure.source else ""
  return (
    f'<figure id="{figure.name}"><h3>{escape(figure.title)}{source}</h3>'
    f'<p class="finding">{escape(figure.finding)}</p><ul class="legend">{legend}</ul>'
    f"{chart.draw(figure, styles)}"
    f'<p class="conditions">{escape(conditions)}</p>'
    f"<details><summary>Numbers</summary>{_table(figure)}</details></figure>"
  )


def places(figure: Figure) -> list[Any]:
  """Returns the x of all series, once each: numbers ascending, categories in their order."""
  found: list[Any] = list(dict.fromkeys(itertools.chain(*(series.x for series in figure.series))))
  return found if figure.is_categorical else sorted(found)


def colours() -> list[str]:
  """Returns the colours of series on the page, by their number, as '#rrggbb'."""
  found = re.findall(r"--c(\d): (#[0-9a-f]{6});", _STYLE.read_text(encoding="utf-8"))
  # The first of each; the second is for dark screens.
  return [
    next(colour for n, colour in found if int(n) == number) for number in range(chart.COLOURS)
  ]


def _remark(series: Series) -> str:
  return f" <em>({series.kind})</em>" if series.kind != MEASURED else ""


def _table(figure: Figure) -> str:
  """Formats the numbers as a table with a row per x."""
  head = "".join(f"<th>{escape(series.name)}{_remark(series)}</th>" for series in figure.series)
  rows = "".join(
    f"<tr><td>{escape(place) if isinstance(place, str) else show(place)}</td>"
    f"{''.join(_entry(series, place) for series in figure.series)}</tr>"
    for place in places(figure)
  )
  return (
    f'<div class="scroll"><table><thead><tr><th>{escape(figure.x.label)}</th>{head}</tr></thead>'
    f"<tbody>{rows}</tbody></table></div>"
  )


def _entry(series: Series, place: float | str) -> str:
  if place not in series.x:
    return "<td></td>"
  index: int = list[Any](series.x).index(place)
  spread = ""
  if series.low is not None and series.high is not None:
    spread = f"<small>{show(series.low[index])} to {show(series.high[index])}</small>"
  return f"<td>{show(series.y[index])}{spread}</td>"


def summary(report: Report) -> str:
  """Formats the findings for the terminal."""
  lines = [report.title]
  for section in report.sections:
    lines += ["", section.title if section.figures else f"{section.title}: not measured yet"]
    if section.left_out:
      lines[-1] = f"{section.title}: {section.left_out}"
    lines += [f"  {figure.title}\n    {figure.finding}" for figure in section.figures]
  return "\n".join(lines)


def read(file: Path) -> tuple[list[str], list[Figure]]:
  """Reads the models' names and the figures of a data file.

  Raises:
    OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError: it is unreadable,
      or no data file.
  """
  data = json.loads(file.read_text("utf-8"))
  return [str(name) for name in data["models"]], list(map(Figure.of_record, data["figures"]))
