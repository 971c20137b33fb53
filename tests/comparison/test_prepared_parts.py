"""What a stored result of a part depends on."""

import dataclasses
import shlex

from comparison import comparison, prepared_parts
from comparison.progress import ComparisonProgress
from comparison.quality.tuning import NoSetting
from comparison.results import ResultCache
from comparison.runs import TrainedRuns

TWO = "{'Griffin': ['models/griffin.gin'], 'MQA Transformer': ['models/transformer.gin']}"
THREE = f"{TWO[:-1]}, 'Griffin, wide': ['models/griffin.gin', 'RNN_WIDTH = 128']}}"


def prepared(folder, file, part, models):
  loaded = comparison.load(file, shlex.split(f"--gin.MODELS={shlex.quote(models)}")).build()
  runs = TrainedRuns(loaded, folder / "runs", ComparisonProgress(), "")
  works = prepared_parts.prepare(loaded, runs, folder / "cells", lambda *_: None)
  return next(work for work in works if work.name == part)


def test_another_model_repeats_no_training_of_a_model_alone(tmp_path):
  place = tmp_path, "gin/compare/state_tracking_quick.gin", "parity"
  key, wide = "Griffin, seed 0", "Griffin, wide, seed 0"
  assert prepared(*place, TWO).measured.cached(key, lambda: 1) == 1
  more = prepared(*place, THREE).measured
  assert more.cached(key, lambda: 2) == 1
  assert more.cached(wide, lambda: 3) == 3
  # A changed model is measured again, also where one name begins with another.
  last = prepared(*place, THREE.replace("RNN_WIDTH = 128", "RNN_WIDTH = 256")).measured
  assert last.cached(wide, lambda: 4) == 4
  assert last.cached(key, lambda: 5) == 1


def test_another_model_repeats_what_is_timed_in_turns_with_it(tmp_path):
  place = tmp_path, "gin/compare/quick.gin", "decode_speed"
  two, three = (
    "{'Griffin': ['compare/quick_griffin.gin'], 'MQA Transformer': ['models/transformer.gin']}",
    "{'Griffin': ['compare/quick_griffin.gin'], 'Hawk': ['compare/quick_hawk.gin'],"
    " 'MQA Transformer': ['models/transformer.gin']}",
  )
  assert prepared(*place, two).measured.cached("tokens after 128", lambda: 1) == 1
  assert prepared(*place, two).measured.cached("tokens after 128", lambda: 2) == 1
  assert prepared(*place, three).measured.cached("tokens after 128", lambda: 3) == 3


def test_a_search_that_continues_plans_what_it_has_done_already(tmp_path):
  quick = (
    "{'Griffin': ['compare/quick_griffin.gin'], 'MQA Transformer': ['models/transformer.gin']}"
  )
  work = prepared(tmp_path, "gin/compare/quick.gin", "tuning", quick)
  first, later = len(work.costs), list(work.further)
  assert len(work.planned()) == first
  for key in [next(iter(work.costs)), later[0], later[-1]]:
    work.measured.cached(key, lambda: 1)
  again = prepared(tmp_path, "gin/compare/quick.gin", "tuning", quick).planned()
  assert len(again) == first + 2
  assert [result.key for result in again if result.seconds is not None][1:] == [later[0], later[-1]]
  assert all(result.cost > 0 for result in again[1:])


def test_results_of_versions_without_an_option_are_found_at_its_default():
  part = comparison.load("gin/compare/recall.gin").build().parts["induction_heads"].part
  told = prepared_parts._told(part)
  assert "look_every=50)" in told
  schedule = dataclasses.replace(part.schedule, examples=6400)
  assert "examples=6400" in prepared_parts._told(dataclasses.replace(part, schedule=schedule))


def test_a_search_without_a_good_rate_leaves_the_other_parts_their_page(tmp_path):
  def failed(cached):
    raise NoSetting("every learning rate")

  cache = ResultCache(tmp_path, "tuning", lambda key: {})
  assert prepared_parts.PreparedPart("tuning", {}, cache, failed).kept() is None
