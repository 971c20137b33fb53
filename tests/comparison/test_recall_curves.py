"""Figures of recall say what was measured, and claim no more than the seeds allow."""

import itertools
import json

import pytest

from comparison.quality.rate_search import RateSearch
from comparison.quality.recall_curves import RecallCurves
from comparison.quality.recall_learning import Schedule, batches
from comparison.quality.tuned_recall_curves import TunedRecallCurves
from data import recall, tokenizers
from data.state_tracking import StateTracking
from models.backbone import Backbone
from models.hawk import hawk
from models.transformer import transformer

BASE = "MQA Transformer"
BACKBONE = Backbone(vocab_size=9, width=16, depth=1)
MODELS = {
  "Hawk": hawk(BACKBONE, rnn_width=16, gate_blocks=4),
  BASE: transformer(BACKBONE, heads=2),
}


def part(**options):
  return RecallCurves(
    **{
      "task": recall.SelectiveCopying(length=6, data_tokens=2, symbols=6),
      "vocabulary": tokenizers.Symbols(6),
      "lengths": (6, 12, 24),
      "baseline": BASE,
      "kind": "position",
      "questions": 16,
      **options,
    }
  )


def known(shares):
  """Makes the contents of a result with given accuracies at the three lengths."""
  return {
    "curve": [[10, shares[0] / 2], [20, shares[0]]],
    "lengths": list(shares),
    "exact": list(shares),
    "kinds": [[0, 1.0, 16], [1, shares[0], 16]],
  }


def figures(hawk_shares, base_shares, **options):
  results = {f"Hawk, seed {n}": known(s) for n, s in enumerate(hawk_shares)}
  results |= {f"{BASE}, seed {n}": known(s) for n, s in enumerate(base_shares)}
  found = part(**options)(MODELS, lambda key, measure: results[key])
  return {figure.name: figure for figure in found}


def test_a_difference_beyond_the_training_length_is_claimed_with_its_interval():
  found = figures(
    [(1.0, 0.9, 0.8), (1.0, 0.9, 0.82), (1.0, 0.9, 0.78)],
    [(1.0, 0.5, 0.1), (1.0, 0.5, 0.1), (1.0, 0.5, 0.1)],
  )
  figure = found["selective_copying_by_length"]
  assert [line.name for line in figure.series] == ["Hawk", BASE]
  assert figure.series[0].x == (6, 12, 24)
  assert figure.series[0].y == pytest.approx((1.0, 0.9, 0.8))
  assert figure.series[0].low[2] < 0.8 < figure.series[0].high[2] <= 1
  assert "Hawk 100%, MQA Transformer 100% at 6 tokens" in figure.finding
  assert "Hawk 80%, MQA Transformer 10% at 24 tokens" in figure.finding
  assert "Hawk is above MQA Transformer by 0.70" in figure.finding
  assert figure.spread.startswith("95% interval")
  assert ("training length", "6 tokens") in figure.conditions
  assert found["selective_copying_by_position"].finding.endswith(
    "MQA Transformer is worst (100%) at 0."
  )


def test_slower_learning_is_told_and_equal_learning_is_not():
  slow = [(0.5, 0.1, 0.1), (0.52, 0.1, 0.1), (0.48, 0.1, 0.1)]
  fast = [(1.0, 0.1, 0.1)] * 3
  told = figures(slow, fast)["selective_copying_learning"]
  assert "Hawk learns more slowly than MQA Transformer" in told.finding
  assert told.series[0].x == (10, 20)
  same = figures(fast, fast)["selective_copying_learning"]
  assert "no difference seen between Hawk and MQA Transformer" in same.finding
  one = figures(slow[:1], fast[:1], seeds=(0,))
  assert "too few seeds" in one["selective_copying_learning"].finding


def test_examples_of_several_sizes_make_few_shapes_and_are_told():
  """Each shape is compiled: at random lengths there would be about ten here."""
  task = StateTracking(length=40)
  drawn = itertools.islice(batches(task, tokenizers.Symbols(3), Schedule(batch_size=8), seed=0), 60)
  lengths = [batch["inputs"].shape[1] for batch in drawn]
  assert lengths == sorted(lengths)
  assert lengths[-1] == 43  # The asking symbol, the answer and the end of the document follow.
  options = {"vocabulary": tokenizers.Symbols(3), "lengths": (40,)}
  assert ("training length", "1 to 40 elements") in part(task=task, **options)._questions.conditions
  whole = task.with_length(40)
  assert ("training length", "40 elements") in part(task=whole, **options)._questions.conditions


def test_models_are_trained_and_asked_once():
  kept, measured = {}, []

  def cached(key, measure):
    if key not in kept:
      measured.append(key)
      kept[key] = json.loads(json.dumps(measure(), allow_nan=False))
    return kept[key]

  short = part(seeds=(0,), schedule=Schedule(steps=4, batch_size=4, warmup_steps=1, look_every=2))
  first = short(MODELS, cached)
  assert measured == list(short.results(MODELS)) == ["Hawk, seed 0", f"{BASE}, seed 0"]
  assert short(MODELS, cached) == first
  assert len(measured) == 2
  by_length, learning, by_position = first
  assert learning.series[0].x == (2, 4)
  assert by_length.series[0].y[0] == learning.series[0].y[-1]
  # Places in the answer are told at the training length: their mean is the accuracy there.
  assert sum(by_position.series[1].y) / 2 == pytest.approx(by_length.series[1].y[0])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"lengths": (12, 24)}, r"must include the training length 6"),
    ({"lengths": (12, 6)}, "must be ascending"),
    ({"kind": "place"}, "kind='place' must be one of distance, depth, position"),
    ({"questions": 0}, "give at least one"),
  ],
)
def test_impossible_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    part(**options)


def test_options_that_do_not_fit_the_models_are_named():
  with pytest.raises(ValueError, match="Hawk has 9 tokens, selective-copying needs 19: set VOCAB"):
    part(vocabulary=tokenizers.Symbols(16)).results(MODELS)
  with pytest.raises(ValueError, match="baseline='Transformer' is none of Hawk, MQA"):
    part(baseline="Transformer").results(MODELS)


def test_a_training_that_is_shorter_than_its_warm_up_is_refused_when_it_is_built():
  with pytest.raises(ValueError, match=r"warmup_steps=50 .* below the 4 steps"):
    Schedule(steps=4)


def tuned(cached, rates=(1e-3, 2e-3, 4e-3)):
  measured = TunedRecallCurves(
    task=recall.SelectiveCopying(length=6, data_tokens=2, symbols=6),
    vocabulary=tokenizers.Symbols(6),
    lengths=(6,),
    baseline=BASE,
    kind="position",
    questions=16,
    seeds=(0,),
    schedule=Schedule(steps=4, batch_size=4, warmup_steps=1, look_every=2),
    search=RateSearch(rates=rates),
    label="of 2",
  )
  return measured, measured(MODELS, cached)


def test_each_model_is_trained_at_the_rate_that_is_best_on_validation_examples():
  right = {
    "Hawk": {1e-3: 0.5, 2e-3: 1.0, 4e-3: 0.97},
    # The best is at the edge: one more rate is tried, and is better.
    BASE: {1e-3: 0.6, 2e-3: 0.2, 4e-3: 0.1, 5e-4: 0.7},
  }
  asked = []

  def cached(key, measure):
    asked.append(key)
    name, _, what = key.partition(", ")
    if what.startswith("learning rate"):
      share = right[name][float(what.split()[-1])]
      return {"right": share, "mean": share / 2}
    return known((1.0,))

  part, found = tuned(cached)
  assert set(part.results(MODELS)) < set(asked)
  assert f"{BASE}, learning rate 0.0005" in asked
  assert "Hawk, learning rate 0.0005" not in asked
  rates = found[-1]
  assert rates.name == "selective_copying_rates_of_2"
  assert rates.title.endswith("against the learning rate, of 2")
  assert "Hawk 100% at 0.002 (as good from 0.002 to 0.004)" in rates.finding
  assert "MQA Transformer 70% at 0.0005, the edge of the grid" in rates.finding
  assert rates.series[1].x == (5e-4, 1e-3, 2e-3, 4e-3)
  assert "each model at its own peak learning rate" in dict(found[0].conditions)["training"]


def test_a_search_sees_neither_the_examples_nor_the_seed_of_the_figures():
  kept = {}

  def cached(key, measure):
    if key not in kept:
      kept[key] = json.loads(json.dumps(measure(), allow_nan=False))
    return kept[key]

  tuned(cached, rates=(1e-4, 1e-2))
  searched = [key for key in kept if "learning rate" in key]
  assert len(searched) == 6  # two models at two rates, and one behind the edge of each
  task, vocabulary = recall.SelectiveCopying(length=32), tokenizers.Symbols(16)
  splits = {
    split: {example.tokens.tobytes() for example in task.drawn(vocabulary, split)}
    for split in recall.SPLITS
  }
  assert len(splits["validation"]) == len(splits["heldout"]) == 1024
  assert not splits["validation"] & splits["heldout"]


def test_equal_rates_are_told_apart_by_the_training_and_grids_must_ascend():
  def train(rate):
    return {"right": 1.0, "mean": {1: 0.2, 2: 0.9, 3: 0.5}[rate]}

  assert RateSearch(rates=(1, 2, 3))("Hawk", lambda key, measure: measure(), train).best == 2
  for rates in ((1e-3,), (2e-3, 1e-3), (1e-3, 1e-3)):
    with pytest.raises(ValueError, match="ascending, and at least two"):
      RateSearch(rates=rates)
