"""The table on top of a page gives each model's answer, and marks only what stands apart."""

import dataclasses
import json
import re

import pytest

from comparison.page import verdict
from comparison.page.figure import ESTIMATED, FITTED, Axis, Figure, Question, Series
from tests.comparison import test_report

MODELS = ("Griffin", "Hawk", "MQA <x>")


def figure(ends, better="lower", **question):
  """A figure with a series of two points per model, whose last has this interval."""
  return Figure(
    name="loss",
    title="Loss",
    finding="None.",
    x=Axis(label="tokens"),
    y=Axis(label="nats"),
    series=tuple(
      Series(
        name=model,
        x=(1.0, 2.0),
        y=(9.0, (low + high) / 2),
        low=(8.0, low),
        high=(10.0, high),
      )
      for model, (low, high) in zip(MODELS, ends, strict=False)
    ),
    asks=(Question(text="loss & more", better=better, **question),),
  )


@pytest.mark.parametrize(
  ("ends", "better", "best"),
  [
    ([(1, 2), (3, 4), (5, 6)], "lower", 0),
    ([(1, 2), (3, 4), (5, 6)], "higher", 2),
    ([(1, 3), (3, 4), (5, 6)], "lower", None),  # they touch
    ([(3, 4), (1, 2.5), (2.4, 6)], "lower", None),
    ([(3, 4), (1, 2)], "lower", 1),  # the third has no answer
    ([(1, 2)], "lower", None),  # nothing to be better than
  ],
)
def test_the_best_stands_apart_from_all_others(ends, better, best):
  (found,) = verdict.verdicts([figure(ends, better)], MODELS)
  assert found.best == best
  assert verdict.table([figure(ends, better)], MODELS).count("<strong>") == (best is not None)


def test_without_intervals_none_is_best():
  bare = figure([(1, 2), (3, 4), (5, 6)])
  series = (dataclasses.replace(bare.series[0], low=None, high=None), *bare.series[1:])
  (found,) = verdict.verdicts([dataclasses.replace(bare, series=series)], MODELS)
  assert found.best is None
  assert found.answers[0].value == 1.5


def test_answers_are_those_of_the_place_and_of_the_model():
  (found,) = verdict.verdicts([figure([(1, 2), (3, 4)], at=1.0)], MODELS)
  assert [answer and answer.value for answer in found.answers] == [9.0, 9.0, None]
  assert not verdict.verdicts([figure([(1, 2)], at=7.0)], MODELS)
  fitted = figure([(1, 2)])
  law = dataclasses.replace(fitted.series[0], kind=FITTED)
  # A fit of a model's name answers, marked as such; a fit of another name is drawn only.
  alone = dataclasses.replace(fitted, series=(law,))
  assert verdict.verdicts([alone], MODELS)[0].answers[0].kind == FITTED
  assert "fitted" in verdict.table([alone], MODELS)
  drawn = dataclasses.replace(law, name="Griffin, power law")
  assert not verdict.verdicts([dataclasses.replace(fitted, series=(drawn,))], MODELS)


def test_the_table_escapes_names_links_figures_and_tells_estimates():
  asked = figure([(1, 2), (3, 4), (5, 6)], unit="B")
  estimated = tuple(dataclasses.replace(one, kind=ESTIMATED) for one in asked.series)
  html = verdict.table([dataclasses.replace(asked, series=estimated)], MODELS)
  assert "MQA &lt;x&gt;" in html
  assert '<a href="#loss">loss &amp; more</a><small>lower is better</small>' in html
  assert "<strong>1.5 B</strong><small>1 B to 2 B, estimated</small>" in html
  assert not verdict.table([dataclasses.replace(asked, asks=())], MODELS)


def test_answers_that_lie_apart_look_so():
  html = verdict.table([figure([(2.3402, 2.3408), (2.3422, 2.3446)], unit="nats")], MODELS)
  assert "<strong>2.341 nats</strong><small>2.34 nats to 2.341 nats</small>" in html
  assert "<td>2.343 nats<small>2.342 nats to 2.345 nats</small></td>" in html


@pytest.mark.parametrize(
  ("value", "unit", "text"),
  [
    (60_312.7, "tokens/s", "60,300 tokens/s"),
    (77_070_356.0, "B", "77.1 MB"),
    (999.0, "B", "999 B"),
    (999_960.0, "B", "1 MB"),
    (2.5e15, "B", "2,500 TB"),
    (0.98765, "", "0.988"),
    (2.34567, "nats", "2.35 nats"),
    (0.0, "ms", "0 ms"),
  ],
)
def test_numbers_are_shown_as_people_read_them(value, unit, text):
  assert verdict.shown(value, unit) == text


def test_a_page_has_the_table_and_folds_the_sentences():
  asked = figure([(1, 2), (3, 4), (5, 6)])
  report = test_report.report()
  first, *rest = report.sections
  sections = (dataclasses.replace(first, figures=(*first.figures, asked)), *rest)
  whole = dataclasses.replace(report, sections=sections)
  page = whole.page()
  assert page.index('class="scroll verdicts"') < page.index("Every finding in a sentence")
  assert re.search(r"<details><summary>Every finding.*?<ul class=.findings.>", page)
  assert "verdicts" not in report.page().partition("</style>")[2]
  # And keeps its questions in the data.
  again = [Figure.of_record(one) for one in json.loads(json.dumps(whole.data()))["figures"]]
  assert again == whole.figures
  old = asked.record()
  del old["asks"]
  assert not Figure.of_record(old).asks


def test_a_question_is_lower_or_higher():
  with pytest.raises(ValueError, match="better='best' is not lower or higher"):
    Question(text="x", better="best")
