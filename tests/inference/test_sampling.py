"""Properties of the choice of the next token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inference.sampling import Sampler

VOCAB = 11


@pytest.fixture
def logits():
  return jax.random.normal(jax.random.key(0), (1, VOCAB)) * 2


def draws(sampler, logits, count=4000):
  keys = jax.random.split(jax.random.key(1), count)
  return np.asarray(sampler(jnp.broadcast_to(logits, (count, VOCAB)), keys))


def test_draws_follow_the_softmax_of_the_scaled_logits(logits):
  for temperature in (0.5, 1.0, 2.0):
    tokens = draws(Sampler(temperature=temperature), logits, 20000)
    expected = jax.nn.softmax(logits[0] / temperature)
    seen = np.bincount(tokens, minlength=VOCAB) / len(tokens)
    # Five standard deviations of a binomial share of 20000 draws is at most 5 * 0.5 / sqrt(20000).
    np.testing.assert_allclose(seen, expected, atol=0.018)


def test_temperature_zero_is_greedy(logits):
  assert set(draws(Sampler(temperature=0.0), logits, 10)) == {int(jnp.argmax(logits))}


def test_greedy_takes_the_first_of_equals_as_argmax_does():
  inf, nan = np.inf, np.nan
  rows = [[1, 3, 3, 2], [-inf, -inf, 0, 0], [-inf] * 4, [1, nan, 5, nan], [inf, 0, inf, 1]]
  logits = jnp.asarray(rows, jnp.float32)
  found = Sampler(temperature=0.0)(logits, jax.random.split(jax.random.key(0), len(rows)))
  np.testing.assert_array_equal(found, jnp.argmax(logits, axis=-1))
  assert found.dtype == jnp.int32


@pytest.mark.parametrize("k", [1, 2, 5, VOCAB, 100])
def test_top_k_draws_only_and_all_of_the_k_likeliest(logits, k):
  likeliest = np.argsort(-np.asarray(logits[0]))[:k]
  assert set(draws(Sampler(temperature=3.0, top_k=k), logits)) == set(likeliest.tolist())


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.8, 0.95])
def test_top_p_draws_from_the_fewest_tokens_that_reach_p(logits, p):
  probabilities = np.asarray(jax.nn.softmax(logits[0]), np.float64)
  order = np.argsort(-probabilities)
  needed = int(np.searchsorted(np.cumsum(probabilities[order]), p)) + 1
  assert set(draws(Sampler(top_p=p), logits)) == set(order[:needed].tolist())


def test_forbidden_tokens_are_never_drawn(logits):
  forbidden = logits.at[0, :9].set(-jnp.inf)
  for sampler in (Sampler(), Sampler(temperature=0.0), Sampler(top_k=5), Sampler(top_p=0.99)):
    assert set(draws(sampler, forbidden, 200)) <= {9, 10}


def test_a_rows_choice_depends_on_its_own_logits_and_key_alone(logits):
  keys = jax.random.split(jax.random.key(2), 3)
  others = jax.random.normal(jax.random.key(3), (3, VOCAB))
  together = Sampler(top_p=0.9)(others.at[1].set(logits[0]), keys)
  assert int(together[1]) == int(Sampler(top_p=0.9)(logits, keys[1:2])[0])


@pytest.mark.parametrize(
  ("options", "told"),
  [
    ({"temperature": -1.0}, "temperature=-1.0 must be at least 0"),
    ({"top_k": 0}, "top_k=0 must be at least 1"),
    ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
    ({"top_p": 1.5}, r"top_p=1.5 must be in \(0, 1\]"),
  ],
)
def test_values_out_of_range_are_refused(options, told):
  with pytest.raises(ValueError, match=told):
    Sampler(**options)
