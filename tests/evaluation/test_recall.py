"""Recall scores are those of the model itself, and record the place of each answer."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from comparison.quality import recall_learning
from data import recall, recall_text, tokenizers
from data.corpora import CorpusError
from data.long_text import Suite
from data.ruler import Needles
from evaluation.recall import Recalled, RecallScorer
from launch import evaluate_long_text, evaluate_recall
from models.backbone import Backbone
from models.griffin import griffin
from models.hawk import hawk
from tests import small_models

SYMBOLS = tokenizers.Symbols(16)
COPYING = recall.SelectiveCopying(length=12, data_tokens=3, heldout_examples=7)


def byte_model():
  backbone = Backbone(vocab_size=259, width=32, depth=3)
  return griffin(backbone, rnn_width=48, heads=2, window=8, gate_blocks=4)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_teacher_forced_answers_are_the_likeliest_after_the_true_tokens(batch_size):
  model = small_models.build("griffin", depth=2)
  params = small_models.initialize(model)
  found = RecallScorer(model, SYMBOLS)(params, COPYING, batch_size=batch_size)
  expected = []
  for example in COPYING.drawn(SYMBOLS, "heldout"):
    inputs = [SYMBOLS.bos_id, *example.tokens[:-1]]
    likeliest = small_models.logits(model, params, inputs).argmax(axis=-1)
    expected += (likeliest == example.tokens)[example.answers].tolist()
  assert found.correct.tolist() == expected


def test_generated_answers_are_those_of_greedy_decoding():
  model = byte_model()
  params = small_models.initialize(model)
  tokenizer = tokenizers.Bytes()
  task = recall_text.Phonebook(length=3, shots=1, digits=2, heldout_examples=3)
  examples = list(task.drawn(tokenizer, "heldout"))
  # What the model says is made the truth of the first two: an answer that is right can be told too.
  truths = []
  for example in examples:
    start = example.answers[0]
    prompt = [tokenizer.bos_id, *example.tokens[:start].tolist()]
    truths.append(small_models.greedy(model, params, prompt, len(example.answers), length=128))
  told = []
  for number, (example, truth) in enumerate(zip(examples, truths, strict=True)):
    tokens = example.tokens.copy()
    tokens[example.answers] = truth if number < 2 else np.asarray(truth) + 1
    told.append(example._replace(tokens=tokens))
  scorer = RecallScorer(model, tokenizer)
  given = list(scorer.generated(params, told, rows=4))
  assert [g.tolist() for g in given] == [[True] * 3, [True] * 3, [False] * 3]


@pytest.mark.parametrize(
  ("run", "task", "contexts", "said"),
  [
    (
      evaluate_long_text.run,
      Suite(tasks=(Needles(),), names=("niah",)),
      (1024, 300),
      r"more than length=300\. Give a longer",
    ),
    (evaluate_recall.run, recall_text.Phonebook(), (16, 2), "invalid phone book: length=2"),
  ],
)
def test_contexts_that_cannot_be_asked_are_told_before_any_is_scored(run, task, contexts, said):
  # Scoring would need a model.
  unscored = types.SimpleNamespace(tokenizer=tokenizers.Bytes())
  options = {"arguments": []} if run is evaluate_recall.run else {}
  with pytest.raises(CorpusError, match=said):
    run(None, unscored, task, contexts, None, None, **options)


def test_a_generated_text_is_right_where_it_contains_the_references():
  model = byte_model()
  params = small_models.initialize(model)
  tokenizer = tokenizers.Bytes()
  task = Needles(length=600, values=2, heldout_examples=2)
  examples = list(task.drawn(tokenizer, "heldout"))
  told = []
  for example in examples:
    prompt = [tokenizer.bos_id, *example.tokens[: example.answers[0]].tolist()]
    said = tokenizer.decode(small_models.greedy(model, params, prompt, 24, length=1024))
    assert len(said) > 3
    # All that it says within the room, in capitals; and what it does not say.
    first, second = example.references
    references = first._replace(text=said.upper()), second._replace(text="#!?")
    told.append(example._replace(references=references, room=24))
  scorer = RecallScorer(model, tokenizer)
  given = list(scorer.generated(params, told, rows=3))
  assert [g.tolist() for g in given] == [[True, False]] * 2
  # Beyond the room nothing counts.
  given = list(scorer.generated(params, [e._replace(room=3) for e in told], rows=3))
  assert [g.tolist() for g in given] == [[False, False]] * 2
  found = Recalled.of(told, [np.array([True, False])] * 2, 600)
  assert found.accuracy == 0.5
  assert found.position.tolist() == [0, 1, 0, 1]
  source, start = told[0].references[0].source, told[0].answers[0]
  assert found.depth[0] == source / start
  assert found.distance[0] == start - source
  assert tokenizer.decode(told[0].tokens[source:])[1:8].isdigit()


def recalled():
  examples = [
    recall.RecallExample(np.zeros(12, np.int32), np.array([8, 9]), np.array([0, 7])),
    recall.RecallExample(np.zeros(12, np.int32), np.array([8, 9]), np.array([4, 5])),
  ]
  return Recalled.of(examples, [np.array([True, False]), np.array([True, True])], length=8)


def test_failures_are_told_by_place():
  found = recalled()
  assert found.accuracy == 0.75
  assert found.exact == 0.5
  assert [(s.start, s.correct, s.count) for s in found.by("position")] == [(0, 1, 2), (1, 0.5, 2)]
  assert [(s.start, s.stop, s.correct, s.count) for s in found.by("distance")] == [
    (2, 4, 0, 1),
    (4, 8, 1, 2),
    (8, 16, 1, 1),
  ]
  assert [(s.start, s.correct) for s in found.by("depth")] == [(0, 1), (0.5, 1), (0.6, 1), (0.8, 0)]
  assert [(s.correct, s.count) for s in found.by("length")] == [(0.75, 4)]


def test_scores_of_two_lengths_join():
  found = recalled()
  longer = dataclasses.replace(found, length=np.full(4, 16), correct=np.zeros(4, bool))
  both = found + longer
  assert both.exact == 0.25
  assert [(s.start, s.correct) for s in both.by("length")] == [(8, 0.75), (16, 0)]


def test_fresh_batches_put_the_loss_on_the_answers_and_depend_on_the_seed():
  first, again, other = (
    next(recall_learning.batches(COPYING, SYMBOLS, recall_learning.Schedule(batch_size=5), seed))
    for seed in (0, 0, 1)
  )
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert (first["targets"] != other["targets"]).any()
  assert (first["loss_weights"].sum(axis=1) == 3).all()
  asked = first["targets"][first["loss_weights"] > 0].reshape(5, 3)
  np.testing.assert_array_equal(asked, first["targets"][:, 13:16])


def test_a_model_learns_a_small_task_and_the_score_says_so():
  task = recall.SelectiveCopying(length=4, data_tokens=1, symbols=5, heldout_examples=64)
  tokenizer = tokenizers.Symbols(5)
  model = hawk(Backbone(vocab_size=8, width=32, depth=2), rnn_width=32, gate_blocks=4)
  schedule = recall_learning.Schedule(
    steps=150, batch_size=32, learning_rate=1e-2, warmup_steps=10, look_every=150
  )
  scorer = RecallScorer(model, tokenizer)
  before = scorer(small_models.initialize(model), task)
  [(step, params)] = recall_learning.Learner(model, task, tokenizer, schedule)(seed=0)
  assert step == 150
  # Three symbols are possible: 64 guesses are right 21 times.
  assert before.accuracy < 0.8
  assert scorer(params, task).accuracy > 0.95
