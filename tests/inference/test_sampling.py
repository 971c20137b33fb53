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


def draws_of(sampler, logits, count=500):
  keys = jax.random.split(jax.random.key(1), count)
  return np.asarray(sampler(jnp.broadcast_to(logits, (count, logits.shape[1])), keys)).tolist()


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


OPTIONS = [
  {"temperature": temperature, "top_k": top_k, "top_p": top_p}
  for temperature in (-0.0, 1.2e-38, 1.0, 3.4e38)
  for top_k, top_p in ((None, 1.0), (1, 1.0), (3, 0.5), (None, 1e-50), (2**70, 0.5))
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_option_and_no_logits_draw_a_forbidden_token(options):
  low, nan, inf = float(np.finfo(np.float32).min), np.nan, np.inf
  rows = [
    [0.0] * 4,
    [low] * 4,
    [nan] * 4,
    [nan, 1, 2, 3],
    [inf, 1, inf, -1],
    [1e38, -1e38, 0, -0.0],
  ]
  # The lowest and the highest ids are forbidden.
  logits = jnp.asarray([[-inf, -inf, *row, -inf] for row in rows], jnp.float32)
  keys = jax.random.split(jax.random.key(4), (20, len(rows)))
  found = jax.jit(jax.vmap(Sampler(**options), (None, 0)))(logits, keys)
  assert set(np.unique(found)) <= {2, 3, 4, 5}


def test_a_very_low_temperature_takes_the_likeliest_and_a_very_high_one_any(logits):
  assert set(draws(Sampler(temperature=1.2e-38), logits, 50)) == {int(jnp.argmax(logits))}
  assert set(draws(Sampler(temperature=3.4e38), logits)) == set(range(VOCAB))


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_top_k_keeps_k_tokens_and_of_equals_those_with_lower_ids(k):
  logits = jnp.asarray([[0.0, 1.0, -0.0, 1.0, 0.0, 1.0, 0.0]])
  expected = [1, 3, 5, 0, 2, 4, 6][:k]
  assert set(draws_of(Sampler(top_k=k, temperature=5.0), logits)) == set(expected)


@pytest.mark.parametrize(("p", "kept"), [(0.1, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3)])
def test_top_p_keeps_the_fewest_of_equals_those_with_lower_ids(p, kept):
  logits = jnp.asarray([[-jnp.inf, 3.0, 3.0, -jnp.inf, 3.0, 3.0]])
  assert set(draws_of(Sampler(top_p=p), logits)) == set([1, 2, 4, 5][:kept])


def test_top_p_counts_among_the_tokens_that_top_k_left():
  logits = jnp.asarray([[2.0, 2.0, 2.0, 2.0, 0.0]])
  assert set(draws_of(Sampler(top_k=2, top_p=0.6), logits)) == {0, 1}
  assert set(draws_of(Sampler(top_k=2, top_p=0.5), logits)) == {0}


@pytest.mark.parametrize(
  ("options", "told"),
  [
    (
      {"temperature": -1.0},
      "temperature=-1.0 must be above 0, or 0 to take the most likely token.",
    ),
    ({"temperature": float("inf")}, "temperature=inf must be from 1.2e-38 to 3.4e.38, or 0"),
    ({"temperature": float("nan")}, "temperature=nan must be above 0, or 0"),
    ({"temperature": 1e-40}, "temperature=1e-40 .* from 1.2e-38 to 3.4e"),
    ({"temperature": 1e39}, "temperature=1e.39 .* from 1.2e-38 to 3.4e"),
    ({"top_k": 0}, "top_k=0 must be a whole number of at least 1"),
    ({"top_k": 1.5}, "top_k=1.5 must be a whole number of at least 1"),
    ({"top_p": float("nan")}, r"top_p=nan must be in \(0, 1\]"),
    ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
    ({"top_p": 1.5}, r"top_p=1.5 must be in \(0, 1\]"),
  ],
)
def test_values_out_of_range_are_refused(options, told):
  with pytest.raises(ValueError, match=told):
    Sampler(**options)
