"""The page of a comparison, as a browser shows it, against the data file beside it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re

import pytest

from comparison.page.chart import looks
from comparison.page.figure import ESTIMATED, FITTED, PUBLISHED, Axis, Figure, Series
from comparison.page.report import Report, Section, figure_element, read, summary
from comparison.page.scale import Scale, show
from tests import browser

MODELS = ("Griffin", "Hawk", "MQA Transformer")
LINES = Figure(
  name="step_time",
  title="Step time <relative>",
  finding="Griffin & Hawk stay level.",
  x=Axis(label="tokens per row", log=True, marks=((2048, "training length"),)),
  y=Axis(label="step time"),
  series=(
    Series(
      name="Griffin",
      x=(512, 2048, 32768),
      y=(1.0, 1.01, 1 / 3),
      low=(0.9, 1.0, 0.3),
      high=(1.1, 1.2, 0.4),
    ),
    Series(name="Griffin, on v5e", x=(512, 2048), y=(0.5, 0.6), kind=ESTIMATED),
    Series(name="MQA Transformer", x=(512, 2048, 32768), y=(1.0, 1.2, 4.5)),
  ),
  spread="95% interval over 3 seeds",
  conditions=(("seeds", "0, 1, 2"),),
  source="section 4.3",
)
FITS = Figure(
  name="scaling",
  title="Loss against compute",
  finding="No difference seen.",
  x=Axis(label="FLOPs", log=True),
  y=Axis(label="loss", log=True),
  series=(
    Series(name="Hawk", x=(1.5e12, 2e15), y=(2.5, 2.0), low=(2.4, 1.9), high=(2.6, 2.1)),
    Series(name="Hawk, power law", x=(1.5e12, 2e15), y=(2.5, 2.0), kind=FITTED),
  ),
)
BARS = Figure(
  name="difference",
  title="Difference to the baseline",
  finding="Hawk is above.",
  x=Axis(label="size"),
  y=Axis(label="nats"),
  series=(
    Series(
      name="Griffin",
      x=("66k", 'a "quoted" size'),
      y=(-0.02, 0.01),
      low=(-0.03, -0.04),
      high=(-0.01, 0.06),
    ),
    Series(name="Hawk", x=("66k",), y=(0.1,)),
  ),
)
POSITIVE = Figure(
  name="accuracy",
  title="Accuracy",
  finding="All solve it.",
  x=Axis(label="task"),
  y=Axis(label="share"),
  series=(Series(name="Griffin", x=("copying", "recall"), y=(0.98, 0.5)),),
)
READ = """Object.fromEntries([...document.querySelectorAll('figure')].map(figure => [figure.id, {
  title: figure.querySelector('h3').firstChild.textContent.trim(),
  finding: figure.querySelector('.finding').textContent,
  conditions: figure.querySelector('.conditions').textContent,
  legend: [...figure.querySelectorAll('[data-legend]')].map(item => item.textContent.trim()),
  series: [...figure.querySelectorAll('g[data-series]')].map(group => ({
    name: group.dataset.series, kind: group.dataset.kind,
    points: [...group.querySelectorAll('.point')].map(point => ({...point.dataset})),
  })),
}]))"""
# What is cut off, or lies on top of other text.
OVERLAPS = """[...document.querySelectorAll('svg.chart')].flatMap(svg => {
  const outer = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll('.tick, .axis-label, .category')].map(
    text => [text.textContent, text.getBoundingClientRect()]);
  const outside = boxes.filter(([, box]) => box.left < outer.left - 1 || box.right > outer.right + 1
    || box.top < outer.top - 1 || box.bottom > outer.bottom + 1)
    .map(([text]) => `outside: ${text}`);
  const crossing = boxes.flatMap(([text, a], n) => boxes.slice(n + 1)
    .filter(([, b]) => a.left < b.right - 1 && b.left < a.right - 1
      && a.top < b.bottom - 3 && b.top < a.bottom - 3)
    .map(([other]) => `crossing: ${text} and ${other}`));
  return [...outside, ...crossing];
})"""


def report(**changes):
  options = {
    "title": "A comparison & <more>",
    "sections": (
      Section(name="training_speed", figures=(LINES, FITS)),
      Section(name="recall", figures=(BARS, POSITIVE)),
      Section(name="kernels"),
    ),
    "models": MODELS,
    "seeds": (0, 1, 2),
    "hardware": {"devices": "2 cores of a <test>"},
    "versions": {"python": "3.11.1", "jax": "0.10.2"},
    "config": "# <config>\nSTEPS = 3\n",
    "command": "python -m launch.compare x.gin --output=y",
    "made": "2026-11-25T12:00:00+00:00",
  }
  return Report(**options | changes)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  return report().write(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def chromium():
  if browser.PROGRAM is None:
    reason = "Chromium is not installed (Debian: apt-get install chromium)"
    if os.environ.get("CI"):
      pytest.fail(reason)
    pytest.skip(reason)
  with browser.Browser() as opened:
    yield opened


def test_the_browser_shows_what_the_data_file_says(page, chromium):
  chromium.open(page)
  shown = chromium.evaluate(READ)
  data = json.loads(page.with_name("data.json").read_text())
  assert list(shown) == [figure["name"] for figure in data["figures"]]
  for figure in data["figures"]:
    found = shown[figure["name"]]
    assert found["title"] == figure["title"]
    assert found["finding"] == figure["finding"]
    for text in (figure["spread"], "2 cores of a <test>", "jax 0.10.2", "python 3.11.1"):
      assert text in found["conditions"]
    names = [series["name"] for series in figure["series"]]
    assert [item.partition(" (")[0] for item in found["legend"]] == names
    by_name = {series["name"]: series for series in found["series"]}
    assert set(by_name) == set(names)
    for series in figure["series"]:
      points = by_name[series["name"]]["points"]
      assert by_name[series["name"]]["kind"] == series["kind"]
      for key in ("x", "y", "low", "high"):
        expected = series[key] or [None] * len(series["x"])
        # Bit for bit: the page carries the numbers, not their rounded labels.
        number = str if isinstance(expected[0], str) else float
        assert [number(point[key]) if key in point else None for point in points] == expected
  assert chromium.evaluate("document.title") == data["title"]
  assert "--only=kernels" in chromium.evaluate("document.querySelector('.missing').textContent")
  assert chromium.complaints == []


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844), (320, 600)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_every_window_in_both_schemes(page, chromium, width, height, scheme):
  chromium.open(page, width=width, height=height, scheme=scheme)
  assert chromium.evaluate("document.documentElement.scrollWidth") <= width
  # Also with all tables open, which scroll for themselves.
  chromium.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
  assert chromium.evaluate("document.documentElement.scrollWidth") <= width
  assert chromium.evaluate(OVERLAPS) == []
  # In pixels of the screen: as small as a caption, never smaller.
  sizes = chromium.evaluate(
    "[...document.querySelectorAll('svg.chart')].map(svg => svg.getBoundingClientRect().width / 400"
    " * parseFloat(getComputedStyle(svg.querySelector('text')).fontSize))"
  )
  assert min(sizes) >= 8.5
  assert chromium.complaints == []


def test_both_schemes_have_enough_contrast(page, chromium):
  grounds = set()
  for scheme in ("light", "dark"):
    chromium.open(page, scheme=scheme)
    style = "getComputedStyle(document.documentElement).getPropertyValue"
    card = chromium.evaluate(f"{style}.call(getComputedStyle(document.documentElement), '--card')")
    grounds.add(card.strip())
    names = {f"--c{n}": 3.0 for n in range(8)} | {"--ink": 7.0, "--muted": 4.5, "--link": 4.5}
    for name, least in names.items():
      colour = chromium.evaluate(
        f"getComputedStyle(document.documentElement).getPropertyValue('{name}')"
      )
      assert contrast(colour, card) >= least, (scheme, name)
  assert len(grounds) == 2


def contrast(first: str, second: str) -> float:
  """The contrast ratio of two colours, as WCAG 2.1 defines it."""

  def luminance(colour: str) -> float:
    values = [int(colour.strip()[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

  high, low = sorted((luminance(first), luminance(second)), reverse=True)
  return (high + 0.05) / (low + 0.05)


def test_the_page_needs_nothing_but_itself(page):
  text = page.read_text()
  assert "<script" not in text
  assert not re.findall(r"(?:src|href)=\"(?!#|data:)", text)
  assert "url(" not in text
  assert "<more>" not in text
  assert "&lt;relative&gt;" in text


def test_estimates_are_marked_in_legend_and_line(page):
  text = page.read_text()
  assert "Griffin, on v5e <em>(estimated)</em>" in text
  dashed = re.search(r'<g class="series c0 estimated"[^>]*><path class="line"[^>]*>', text)
  assert "stroke-dasharray" in dashed[0]
  solid = re.search(r'<g class="series c0 measured"[^>]*><path class="line"[^>]*>', text)
  assert "stroke-dasharray" not in solid[0]


def test_published_points_are_marked_and_not_joined():
  own = Series(name="Griffin", x=(1.0, 2.0), y=(0.5, 0.6))
  paper = Series(name="Griffin, paper", x=(1.0, 2.0), y=(0.7, 0.8), kind=PUBLISHED)
  figure = dataclasses.replace(LINES, series=(own, paper))
  assert [look.connected for look in looks(figure, MODELS)] == [True, False]
  element = figure_element(figure, MODELS, "")
  assert element.count("<em>(published)</em>") == 2  # In the legend and over the numbers.
  (drawn,) = re.findall(r'<g class="series c0 published".*?</g></g>', element)
  assert drawn.count('class="marker"') == 2
  assert 'class="line"' not in drawn


def test_what_a_part_leaves_out_is_on_the_page_and_in_the_terminal():
  told = "Left out: PIQA & more, because there is no data."
  for figures in ((), (LINES,)):
    section = Section(name="downstream", figures=figures, left_out=told)
    found = report(sections=(section, Section(name="speed")))
    page = found.page()
    assert page.count(told.replace("&", "&amp;")) == 1
    assert ("<figure" in page) == bool(figures)
    assert page.count("Not measured yet") == 1
    assert found.data()["left_out"] == {"downstream": told}
    assert f"Downstream: {told}" in summary(found)


def test_the_data_file_gives_the_figures_back(page):
  _, figures = read(page.with_name("data.json"))
  assert figures == [LINES, FITS, BARS, POSITIVE]


def test_the_terminal_is_told_every_finding():
  text = summary(report())
  for figure in (LINES, FITS, BARS, POSITIVE):
    assert figure.finding in text
  assert "Kernels: not measured yet" in text


def test_a_model_has_one_colour_in_all_figures():
  by_name = {}
  for figure in (LINES, FITS, BARS):
    for series, look in zip(figure.series, looks(figure, MODELS), strict=True):
      by_name.setdefault(series.name, set()).add(look.colour)
  assert by_name["Griffin"] == by_name["Griffin, on v5e"] == {0}
  assert by_name["Hawk"] == by_name["Hawk, power law"] == {1}
  others = Figure(**{**LINES.__dict__, "series": (Series(name="pallas", x=(1, 2), y=(1, 2)),)})
  assert looks(others, MODELS)[0].colour == 3


def test_two_figures_of_one_name_are_refused():
  twice = (Section(name="a", figures=(LINES,)), Section(name="b", figures=(LINES,)))
  with pytest.raises(ValueError, match="several figures have the name step_time"):
    report(sections=twice)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"name": "two words"}, "must be valid in a URL"),
    ({"series": ()}, "series of different names"),
    ({"series": (LINES.series[0], LINES.series[0])}, "series of different names"),
    ({"series": (LINES.series[0], BARS.series[1])}, "mixes numbers and categories"),
    ({"y": Axis(label="loss", log=True), "series": (BARS.series[0],)}, "not positive"),
  ],
)
def test_figures_that_cannot_be_drawn_are_refused(changes, told):
  with pytest.raises(ValueError, match=told):
    Figure(**{**LINES.__dict__, **changes})


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("low", [1e-7, 0.3, 1.97, 64, 1e12])
@pytest.mark.parametrize("ratio", [1.01, 1.3, 3, 12, 900, 1e7])
def test_axes_have_a_few_different_ticks_within_their_range(log, low, ratio):
  scale = Scale(low, low * ratio, 50, 400, log)
  ticks = scale.ticks()
  values, labels = zip(*ticks, strict=True)
  assert 2 <= len(ticks) <= 11
  assert all(scale.low * (1 - 1e-9) <= value <= scale.high * (1 + 1e-9) for value in values)
  assert len(set(labels)) == len(labels)
  assert all(a < b for a, b in itertools.pairwise(map(scale, values)))


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0, "0"),
    (2048, "2,048"),
    (0.06833, "0.06833"),
    (-0.02, "\N{MINUS SIGN}0.02"),
    (1.0, "1"),
    (3.14159, "3.142"),
    (1.32e12, "1.32·10¹²"),
    (1e-9, "10⁻⁹"),
    (123456.7, "123,457"),
  ],
)
def test_numbers_are_shown_as_people_read_them(value, text):
  assert show(value) == text
