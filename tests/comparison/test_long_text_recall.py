"""What models find in long texts is told by length, task and depth."""

from __future__ import annotations

import pytest

from comparison import comparison, shares
from comparison.progress import ComparisonProgress
from comparison.quality.long_text_recall import LongTextRecall
from comparison.quality.recall_of_runs import RecallOfRuns
from comparison.runs import TrainedRuns
from data.corpora import CorpusError
from data.long_text import Suite
from data.recall_text import Phonebook
from data.ruler import Needles
from data.ruler_words import FrequentWords
from data.tokenizers import Bytes
from tests.comparison.test_parts import BASE, KnownRuns, measure


def test_long_texts_are_told_by_length_task_and_depth():
  suite = Suite(
    tasks=(Needles(), Needles(value="uuids"), FrequentWords()), names=("niah", "codes", "fwe")
  )
  part = LongTextRecall(suite=suite, size="4k", lengths=(1024, 2048), baseline=BASE, questions=120)
  figures = measure(part, KnownRuns())
  ends = ("by_length", "by_task_1024", "by_task_2048", "by_depth_1024", "by_depth_2048")
  assert list(figures) == [f"ruler_{end}" for end in ends]
  by_length = figures["ruler_by_length"]
  assert by_length.series[0].y == pytest.approx((1 / 3, 1 / 3))
  # All seeds are equally right: the interval is that of 360 questions.
  own = shares.wilson(1 / 3, 360)
  assert (by_length.series[0].low[0], by_length.series[0].high[0]) == (own.low, own.high)
  assert "Griffin is above MQA Transformer by 0.17" in by_length.finding
  assert [q.at for q in by_length.asks] == [1024, 2048]
  assert [d.text for d in by_length.differences] == ["Griffin minus MQA Transformer"]
  by_depth = figures["ruler_by_depth_2048"]
  assert by_depth.series[0].y[-3:] == pytest.approx((1, 1, 1))
  assert "Griffin is worst (0%) at 0" in by_depth.finding
  # Tasks without a depth are none of it.
  assert "2 tasks" in by_depth.y.label
  alone = measure(part, KnownRuns(seeds=(0,)))["ruler_by_length"]
  assert alone.spread == "95% interval (Wilson) over the questions, one seed"


@pytest.mark.parametrize(
  ("part", "said"),
  [
    (
      LongTextRecall(
        suite=Suite(tasks=(Needles(),), names=("niah",)),
        size="4k",
        lengths=(300, 1024),
        baseline=BASE,
      ),
      r"more than length=300\. Give a longer",
    ),
    (
      RecallOfRuns(task=Phonebook(), size="4k", lengths=(2, 4), baseline=BASE),
      "invalid phone book: length=2",
    ),
  ],
)
def test_what_cannot_be_asked_is_told_before_a_model_is_trained(part, said):
  class Asked(KnownRuns):
    def require_recall(self, spec, task, questions):
      task.require(Bytes())

  runs = Asked()
  with pytest.raises(CorpusError, match=said):
    part(runs, lambda key, measure: measure())
  assert not runs.trained


def test_runs_know_before_their_training_what_they_can_be_asked(tmp_path):
  quick = comparison.load("compare/ruler_quick.gin").build()
  runs = TrainedRuns(quick, tmp_path, ComparisonProgress(), "")
  part = quick.parts["ruler"].part
  spec = next(iter(part.results(runs).values()))
  runs.require_recall(spec, part.suite.with_length(2048), 22)
  with pytest.raises(CorpusError, match=r"more than length=500\. Give a longer"):
    runs.require_recall(spec, part.suite.with_length(500), 22)
