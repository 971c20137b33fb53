"""Figures leave a comparison as pictures, and as tables with all their numbers."""

import csv
import dataclasses
import io
import json
import re

import pytest
from matplotlib import image

from base.errors import UserError
from comparison.page import chart, export, report
from comparison.page.figure import Axis
from launch import compare
from tests.comparison import test_report

REPORT = test_report.report()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """The page of a comparison, and its exported figures."""
  folder = tmp_path_factory.mktemp("comparison")
  REPORT.write(folder / "report")
  assert compare.main([f"--output={folder}", f"--export={folder / 'figures'}"]) == 0
  return folder


@pytest.mark.parametrize("figure", REPORT.figures, ids=lambda figure: figure.name)
def test_all_numbers_are_in_the_table(written, figure):
  rows = list(csv.DictReader(io.StringIO((written / "figures" / f"{figure.name}.csv").read_text())))
  found = [(row["series"], row[figure.x.label], float(row[figure.y.label])) for row in rows]
  assert found == [
    (series.name, str(x), y)
    for series in figure.series
    for x, y in zip(series.x, series.y, strict=True)
  ]
  with_ends = [float(row["low"]) for row in rows if row["low"]]
  assert with_ends == [low for series in figure.series for low in series.low or ()]


@pytest.mark.parametrize("figure", REPORT.figures, ids=lambda figure: figure.name)
def test_pictures_open(written, figure):
  picture = image.imread(written / "figures" / f"{figure.name}.png")
  assert picture.shape[1] == 840
  assert picture.std() > 0.05
  assert (written / "figures" / f"{figure.name}.pdf").read_bytes().startswith(b"%PDF")


def test_a_comparison_exported_again_gives_the_same_files(written, tmp_path):
  assert compare.main([f"--output={written}", f"--export={tmp_path}"]) == 0
  for file in (written / "figures").iterdir():
    assert (tmp_path / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("figure", REPORT.figures, ids=lambda figure: figure.name)
def test_latex_has_a_row_per_place_and_a_column_per_series(written, figure):
  text = (written / "figures" / f"{figure.name}.tex").read_text()
  lines = [line for line in text.splitlines() if not line.startswith("%")]
  body = lines[lines.index("\\midrule") + 1 : lines.index("\\bottomrule")]
  assert len(body) == len(report.places(figure))
  for line in [lines[2], *body]:
    assert line.endswith(r" \\")
    # A separator is an & without a backslash.
    assert len(re.findall(r"(?<!\\)&", line)) == len(figure.series)
  assert text.count("{") == text.count("}")


def test_tables_tell_what_is_not_measured():
  assert "<th>Hawk, power law <em>(fitted)</em></th>" in report._table(test_report.FITS)
  assert r"& Griffin & Griffin, on v5e (estimated) & MQA" in export.latex(test_report.LINES)
  assert r"& Hawk & Hawk, power law (fitted) \\" in export.latex(test_report.FITS)


def test_latex_escapes_what_latex_reads():
  assert export._escaped("a_b & 50% of $x^2$ {~} <") == (
    r"a\_b \& 50\% of \$x\textasciicircum{}2\$ \{\textasciitilde{}\} \textless{}"
  )
  numbers = [export._number(value) for value in (-0.5, 12345.0, 1.5e-7, 1e9)]
  assert numbers == ["$-0.5$", "$12{,}345$", r"$1.5\cdot 10^{-7}$", "$10^{9}$"]


def test_dollars_are_no_formulas_and_comments_are_one_line():
  broken = Axis(label=r"$\frac$", marks=((2048, r"$\frac$"),))
  labels = {"title": "a\nb", "spread": "c\n\nd", "x": broken, "y": broken}
  lines = dataclasses.replace(test_report.LINES, **labels)
  assert export._pictures(lines, ()).keys() == {"png", "pdf"}
  bars = dataclasses.replace(test_report.BARS, y=broken)
  assert export._pictures(bars, ()).keys() == {"png", "pdf"}
  first, second, third, *_ = export.latex(lines).splitlines()
  assert first == "% a b: Griffin & Hawk stay level."
  assert second.endswith("in brackets: c d")
  assert third.startswith(r"\begin{tabular}")


def test_colours_are_those_of_the_light_page():
  found = report.colours()
  assert len(found) == chart.COLOURS
  assert found[0] == "#0067a8"


@pytest.mark.parametrize(
  "text", ["", "{", "[]", "{}", '{"models": [], "figures": [{}]}', '{"models": 1, "figures": []}']
)
def test_what_is_no_page_is_told(tmp_path, text):
  (tmp_path / "report").mkdir()
  (tmp_path / "report" / "data.json").write_text(text)
  with pytest.raises(UserError, match=r"report/data.json cannot be read, or is no page's"):
    compare.main([f"--output={tmp_path}", f"--export={tmp_path / 'figures'}"])
  (tmp_path / "report" / "data.json").write_text(json.dumps({"models": [], "figures": []}))
  with pytest.raises(UserError, match="no figures yet"):
    compare.main([f"--output={tmp_path}", f"--export={tmp_path / 'figures'}"])
  assert not (tmp_path / "figures").exists()
