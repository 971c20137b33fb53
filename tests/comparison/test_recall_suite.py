"""A suite of tasks is trained and asked as planned, and its scores are those of the results."""

import json

import jax
import numpy as np
import pytest

from comparison.quality.compression import Compression, CompressionLearner
from comparison.quality.rate_search import RateSearch
from comparison.quality.recall_learning import Schedule, batches
from comparison.quality.recall_suite import RecallSuite
from data import tokenizers
from data.mad import Memorization, RecallInContext
from models.backbone import Backbone
from models.hawk import hawk
from models.transformer import transformer

BASE = "MQA Transformer"
BACKBONE = Backbone(vocab_size=19, width=16, depth=1)
MODELS = {
  "Hawk": hawk(BACKBONE, rnn_width=16, gate_blocks=4),
  BASE: transformer(BACKBONE, heads=2),
}
SHORT = Schedule(steps=4, batch_size=4, warmup_steps=1, look_every=2)
TASKS = {
  "recall": RecallInContext(length=8, symbols=8),
  "compression": Compression(length=6, symbols=5),
}


def suite(**options):
  return RecallSuite(
    **{
      "label": "MAD",
      "tasks": TASKS,
      "vocabulary": tokenizers.Symbols(16),
      "search": RateSearch(rates=(1e-3, 2e-3, 4e-3)),
      "baseline": BASE,
      "schedule": SHORT,
      "questions": 8,
      **options,
    }
  )


def known(key):
  """The better the higher the rate, up to 2e-3; Hawk knows recall, the baseline compression."""
  if "learning rate" in key:
    return {"right": 0.9 if "0.002" in key else 0.3, "mean": 0.2}
  return 0.9 if ("Hawk" in key) == ("recall" in key) else 0.5 + 0.01 * int(key[-1])


def test_scores_are_means_over_tasks_with_intervals_over_seeds():
  scores, *rates = suite()(MODELS, lambda key, measure: known(key))
  assert scores.name == "mad_scores"
  assert scores.series[0].x == ("recall", "compression", "mean")
  assert scores.series[0].y == pytest.approx((0.9, 0.51, 0.705))
  assert scores.series[1].y == pytest.approx((0.51, 0.9, 0.705))
  assert "no difference seen between Hawk and MQA Transformer" in scores.finding
  assert "edge" not in scores.finding
  assert scores.asks[0].at == "mean"
  assert [figure.name for figure in rates] == ["mad_rates_recall", "mad_rates_compression"]
  assert "Hawk 90% at 0.002" in rates[0].finding
  edge = suite(search=RateSearch(rates=(1e-3, 2e-3)))

  def steep(key, measure):
    return {"right": float(key.split()[-1]), "mean": 0.0} if "rate" in key else 1.0

  scores, *_ = edge(MODELS, steep)
  assert "at an edge of the grid for Hawk on recall, MQA Transformer on recall" in scores.finding


def test_models_are_trained_and_asked_as_planned():
  kept = {}

  def cached(key, measure):
    if key not in kept:
      kept[key] = json.loads(json.dumps(measure(), allow_nan=False))
    return kept[key]

  small = suite(seeds=(0,), search=RateSearch(rates=(1e-3, 2e-3)))
  alone = {BASE: MODELS[BASE]}
  first = small(alone, cached)
  planned = small.results(alone)
  assert set(planned) <= set(kept)
  # No more than a rate behind an edge, for each task.
  assert len(kept) - len(planned) <= 2
  assert {small.model_of(key, MODELS) for key in kept} == {BASE}
  assert all(0 <= kept[f"{BASE}, {task}, seed 0"] <= 1 for task in TASKS)
  assert small(alone, cached) == first


def test_a_sequence_is_compressed_into_its_last_state():
  """Two symbols in three places: a model of 16 channels learns to give them all."""
  task = Compression(length=4, symbols=3)
  schedule = Schedule(steps=150, batch_size=32, learning_rate=1e-2, warmup_steps=10, look_every=75)
  learner = CompressionLearner(MODELS["Hawk"], task, schedule)
  rights = [learner.accuracy(params, 64, "heldout") for _, params in learner(0)]
  assert rights[-1] > 0.95
  params = jax.tree.map(np.zeros_like, dict(learner(0).__next__()[1]))
  assert learner.accuracy(params, 64, "heldout") < 0.75


def test_a_limited_number_of_examples_is_read_in_passes():
  def drawn(schedule, count=6):
    made = batches(RecallInContext(), tokenizers.Symbols(16), schedule, 0)
    return [next(made)["targets"].tobytes() for _ in range(count)]

  passes = drawn(Schedule(batch_size=4, examples=8))
  assert passes[:2] * 3 == passes
  assert len(set(passes)) == 2
  endless = drawn(Schedule(batch_size=4))
  assert endless[:2] == passes[:2]
  assert len(set(endless)) == 6
  short = Schedule(steps=2, batch_size=4, warmup_steps=1, examples=8)
  assert short.describe() == "2 steps, 8 examples, each seen once"
  long = Schedule(steps=10, batch_size=4, warmup_steps=1, examples=8)
  assert long.describe() == "10 steps, 5 passes of 8 examples"
  with pytest.raises(ValueError, match="examples=9 must be a multiple of batch_size=4"):
    Schedule(batch_size=4, examples=9)


@pytest.mark.parametrize(
  ("options", "told"),
  [
    ({"tasks": {}}, "at least one"),
    ({"seeds": ()}, "at least one"),
    ({"tasks": {"mean": Memorization()}}, "cannot be told from the mean"),
  ],
)
def test_suites_that_cannot_be_shown_are_refused(options, told):
  with pytest.raises(ValueError, match=told):
    suite(**options)


def test_models_with_too_few_ids_are_named():
  with pytest.raises(ValueError, match=r"Hawk has 19 tokens, MAD needs 33: set VOCAB_SIZE = 33"):
    suite(vocabulary=tokenizers.Symbols(30)).results(MODELS)
