"""The differences of a page are corrected together: as by hand, and against simulated pages."""

import dataclasses
import json
import re

import numpy as np
import pytest
import scipy.stats

from comparison.page import corrections
from comparison.page.figure import Axis, Difference, Figure, Series
from comparison.page.report import DATA_FILE, read
from comparison.statistics import Claims, Interval, interval, paired_difference
from tests.comparison import test_report


def test_p_values_are_those_of_scipy_and_agree_with_the_interval():
  source = np.random.default_rng(1)
  for _ in range(40):
    first, second = source.normal(0.0, 1.0, (2, 3))
    found = paired_difference(first, second)
    assert found.p == pytest.approx(scipy.stats.ttest_rel(first, second).pvalue, rel=1e-9)
    assert (found.p < 0.05) == found.excludes_zero


def test_values_without_spread_have_p_values():
  assert interval([0.5, 0.5, 0.5]).p == 0
  assert interval([0.0, 0.0, 0.0]).p == 1
  assert interval([0.5]).p is None


def test_corrected_p_values_are_those_of_holm():
  # 4 x 0.005, 3 x 0.01, 2 x 0.03, and not less than the one before.
  found = corrections.holm([0.01, 0.04, 0.03, 0.005])
  assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert corrections.holm([]) == []
  assert corrections.holm([0.9, 0.8]) == [1.0, 1.0]


def test_pages_without_any_difference_claim_one_as_rarely_as_they_say():
  """Uncorrected, two of three pages would."""
  pages = np.random.default_rng(0).uniform(size=(2000, 20))
  corrected = np.mean([min(corrections.holm(page)) < corrections.LEVEL for page in pages])
  # Four standard errors of a share of 0.05 in 2000.
  assert corrected == pytest.approx(0.05, abs=0.02)
  assert np.mean(pages.min(axis=1) < corrections.LEVEL) > 0.6


def test_claims_note_what_they_say_and_leave_out_too_few_seeds():
  claims = Claims()
  wording = {"lower": "is below", "higher": "is above"}
  told = claims.says_difference("A", "B", interval([1.0, 1.1, 0.9]), of="loss", **wording)
  assert told.startswith("A is above B by 1.000")
  claims.says_difference("A", "C", interval([1.0, 1.1]), **wording)
  claims.note("D", Interval(1.0, 0.5, 1.5, 3))  # no p value: medians
  (noted,) = claims.noted
  assert noted.text == "A minus B, loss"
  assert (noted.value, noted.p) == (1.0, interval([1.0, 1.1, 0.9]).p)


def figure_of(name, **p_values):
  """A figure that tests differences with these p values."""
  return Figure(
    name=name,
    title=f"Title of {name}",
    finding="None.",
    x=Axis(label="tokens"),
    y=Axis(label="nats"),
    series=(Series(name="Griffin", x=(1.0,), y=(2.0,)),),
    differences=tuple(
      Difference(text=f"{text} & <B>", value=-0.1, low=-0.2, high=0.0, p=p)
      for text, p in p_values.items()
    ),
  )


def test_the_page_has_a_row_for_each_difference_and_says_which_remain(tmp_path):
  figures = figure_of("one", first=0.0001, second=0.03), figure_of("two", third=0.4)
  (section, *_) = test_report.report().sections
  report = test_report.report(sections=(dataclasses.replace(section, figures=figures),))
  page = report.write(tmp_path).read_text("utf-8")
  told = "3 differences are tested on this page: 2 are seen each on its own, 1 if all"
  assert told in page
  table = page[page.index("corrections") :].partition("</table>")[0]
  rows = re.findall(
    r'<a href="#(\w+)">.*?<small>(\w+) &amp; &lt;B&gt;</small>.*?<td>([\w ]+)</td></tr>', table
  )
  assert rows == [
    ("one", "first", "yes"),
    ("one", "second", "only without correction"),
    ("two", "third", "no"),
  ]
  assert "&lt; 0.001" in table
  _, again = read(tmp_path / DATA_FILE)
  assert [one.differences for one in again] == [one.differences for one in figures]


def test_pages_of_earlier_versions_have_no_differences(tmp_path):
  (tmp_path / "index.html").touch()
  report = test_report.report()
  report.write(tmp_path)
  assert corrections.table(report.figures) == ""
  data = json.loads((tmp_path / DATA_FILE).read_text("utf-8"))
  for figure in data["figures"]:
    del figure["differences"]
  (tmp_path / DATA_FILE).write_text(json.dumps(data), encoding="utf-8")
  _, found = read(tmp_path / DATA_FILE)
  assert all(one.differences == () for one in found)
