"""Figures of recall say what was measured, and claim no more than the seeds allow."""

import json

import pytest

from comparison.quality.recall_curves import RecallCurves
from comparison.quality.recall_learning import Schedule
from data import recall, tokenizers
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
