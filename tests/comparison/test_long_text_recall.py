"""What models find in long texts is told by length, task and depth."""

from __future__ import annotations

import pytest

from comparison import shares
from comparison.quality.long_text_recall import LongTextRecall
from data.long_text import Suite
from data.ruler import Needles
from data.ruler_words import FrequentWords
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
