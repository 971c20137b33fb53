"""Log-likelihoods are those of the model, however requests are batched, padded and cut."""

import numpy as np
import pytest

from evaluation import likelihood
from evaluation.likelihood import LikelihoodScorer, Request
from tests import small_models


@pytest.fixture(scope="module")
def griffin():
  model = small_models.build("griffin", depth=2)
  return model, small_models.initialize(model)


def directly(model, params, context, continuation):
  """One request, one row, no padding."""
  ids = [*context, *continuation]
  logits = small_models.logits(model, params, ids[:-1]).astype(np.float64)[-len(continuation) :]
  logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  chosen = logs[np.arange(len(continuation)), continuation]
  return chosen.sum(), bool((logs.argmax(axis=1) == continuation).all())


def requests(sizes, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda n: rng.integers(3, small_models.VOCAB_SIZE, n).tolist()  # noqa: E731
  return [Request(draw(a), draw(b)) for a, b in sizes]


@pytest.mark.parametrize("tokens_at_once", [1, 10_000])
def test_batched_likelihoods_equal_those_of_single_rows(griffin, tokens_at_once):
  model, params = griffin
  asked = requests([(1, 1), (1, 7), (30, 2), (5, 1), (31, 1), (32, 1), (20, 40), (2, 2)])
  seen = []
  found = LikelihoodScorer(model, 128, tokens_at_once)(
    params, asked, lambda done, total: seen.append((done, total))
  )
  for request, (log_probability, greedy) in zip(asked, found, strict=True):
    expected, expected_greedy = directly(model, params, *request)
    # Sums of up to 40 float32 logarithms of about 4.
    assert log_probability == pytest.approx(expected, abs=1e-4)
    assert greedy == expected_greedy
  assert seen[-1] == (len(asked), len(asked))


def test_the_greedy_continuation_is_known_as_such(griffin):
  model, params = griffin
  context = requests([(9, 1)])[0].context
  answer = small_models.greedy(model, params, context, 5)
  other = [*answer[:4], (answer[4] + 1) % small_models.VOCAB_SIZE]
  found = LikelihoodScorer(model, 64)(params, [Request(context, answer), Request(context, other)])
  assert [score.greedy for score in found] == [True, False]


def test_a_context_that_does_not_fit_loses_its_first_tokens(griffin):
  model, params = griffin
  [long] = requests([(50, 6)])
  [found] = LikelihoodScorer(model, 20)(params, [long])
  # 20 tokens are read, and a 21st is predicted.
  expected, _ = directly(model, params, long.context[-15:], long.continuation)
  assert found.log_probability == pytest.approx(expected, abs=1e-4)
  whole, _ = directly(model, params, *long)
  assert found.log_probability != pytest.approx(whole, abs=1e-3)


def test_large_logits_are_computed_in_pieces_with_the_same_result(griffin, monkeypatch):
  model, params = griffin
  asked = requests([(4, 20), (11, 9)])
  expected = LikelihoodScorer(model, 64)(params, asked)
  monkeypatch.setattr(likelihood, "_MAX_LOGIT_BYTES", 2**11)
  found = LikelihoodScorer(model, 64)(params, asked)
  np.testing.assert_allclose(
    [score.log_probability for score in found],
    [score.log_probability for score in expected],
    rtol=1e-6,
  )


def test_many_requests_make_few_shapes(griffin):
  model, _ = griffin
  scorer = LikelihoodScorer(model, 2048, tokens_at_once=4096)
  sizes = [(a, b) for a in range(1, 1500, 13) for b in (1, 5, 40)]
  batches = list(scorer._batches(requests(sizes)))
  assert sorted(index for chosen, *_ in batches for index in chosen) == list(range(len(sizes)))
  shapes = {(length, places, rows) for _, length, places, rows in batches}
  assert len(shapes) < 30
  assert all(rows * length <= 4096 for length, _, rows in shapes)


def test_requests_that_cannot_be_scored_are_named(griffin):
  model, params = griffin
  scorer = LikelihoodScorer(model, 8)
  with pytest.raises(ValueError, match="continuation of 9 tokens does not fit into max_length=8"):
    scorer(params, requests([(1, 9)]))
  with pytest.raises(ValueError, match="at least one token each"):
    scorer(params, [Request([], [3])])
  with pytest.raises(ValueError, match="max_length=0 must be at least 1"):
    LikelihoodScorer(model, 0)
