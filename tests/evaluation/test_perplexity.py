"""Scores against sums written out by hand."""

import math

import jax
import numpy as np
import pytest

from data.loader import batch_of_rows
from evaluation.perplexity import Score, Scorer
from tests import small_models

BYTE_LENGTHS = np.asarray([0, 0, *([1] * 30), *([3] * 29)], np.int32)


@pytest.fixture(scope="module")
def model():
  return small_models.build("griffin", depth=2)


@pytest.fixture(scope="module")
def params(model):
  return small_models.initialize(model)


def rows(seed, count=3, length=24):
  """Rows of two documents and some padding."""
  source = np.random.default_rng(seed)
  tokens = source.integers(1, small_models.VOCAB_SIZE, (count, length))
  segment_ids = np.ones((count, length), int)
  for row in range(count):
    segment_ids[row, 5 + row :] = 2
    segment_ids[row, 20 - row :] = 0
  batch = batch_of_rows(tokens, segment_ids, bos_id=0)
  spelled = np.where(segment_ids > 0, BYTE_LENGTHS[tokens], 0).sum(axis=1)
  return batch | {"row_bytes": spelled}


def test_the_score_is_the_mean_over_documents_scored_one_by_one(model, params):
  batches = [rows(0), rows(1)]
  result = Scorer(model)(params, batches)
  apply = jax.jit(model.apply)
  nats = size = tokens = 0.0
  by_position = np.zeros(24)
  for batch in batches:
    for row in range(3):
      for segment in (1, 2):
        where = batch["segment_ids"][row] == segment
        targets = batch["targets"][row][where]
        # Alone in a row; what comes after it cannot be seen.
        alone = np.zeros((1, 24), np.int32)
        alone[0, : len(targets)] = batch["inputs"][row][where]
        logits = np.asarray(apply({"params": params}, alone)[0])[0]
        losses = -jax.nn.log_softmax(logits)[np.arange(len(targets)), targets]
        nats += float(losses.sum())
        by_position[: len(targets)] += np.asarray(losses)
        size += BYTE_LENGTHS[targets].sum()
        tokens += len(targets)
  assert result.tokens == tokens
  assert result.bytes == size
  # float32 losses of order 4, summed over 100 tokens in another order.
  np.testing.assert_allclose(result.loss, nats / tokens, rtol=1e-5)
  np.testing.assert_allclose(result.bits_per_byte, nats / math.log(2) / size, rtol=1e-5)
  np.testing.assert_allclose(result.losses, by_position, rtol=1e-4)


def test_scores_of_different_lengths_add_up():
  short = Score(np.asarray([2.0, 4.0]), np.asarray([1, 1]), 3)
  long = Score(np.asarray([1.0, 1.0, 7.0]), np.asarray([1, 1, 2]), 4)
  for total in (short + long, long + short):
    assert total.losses.tolist() == [3.0, 5.0, 7.0]
    assert total.counts.tolist() == [2, 2, 2]
    assert total.bytes == 7


def test_buckets_cover_every_position_once(model, params):
  result = Scorer(model)(params, [rows(0)])
  for edges in (None, [0, 3, 10], [0, 100]):
    buckets = result.by_position(edges)
    assert sum(bucket.tokens for bucket in buckets) == result.tokens
    total = sum(bucket.loss * bucket.tokens for bucket in buckets)
    np.testing.assert_allclose(total, result.losses.sum(), rtol=1e-12)
  assert [(b.start, b.stop) for b in result.by_position()][:4] == [(0, 1), (1, 2), (2, 4), (4, 8)]


def test_rows_longer_than_trained_on_are_scored(model, params):
  batch = rows(0, count=1, length=24 * 8)
  result = Scorer(model)(params, [batch])
  assert math.isfinite(result.loss)


def test_nothing_to_score_is_refused(model, params):
  batch = rows(0)
  batch["loss_weights"][:] = 0
  batch["row_bytes"][:] = 0
  with pytest.raises(ValueError, match="no text to score"):
    Scorer(model)(params, [batch])


def test_the_bytes_are_the_text_s_and_not_what_its_tokens_spell(model, params):
  """A tokenizer that normalises, or writes <unk>, decodes to fewer bytes than the text has."""
  batch = rows(0)
  spelled = Scorer(model)(params, [batch])
  text = Scorer(model)(params, [batch | {"row_bytes": 4 * batch["row_bytes"]}])
  assert text.bytes == 4 * spelled.bytes
  assert text.loss == spelled.loss
  assert text.bits_per_byte == pytest.approx(spelled.bits_per_byte / 4)
