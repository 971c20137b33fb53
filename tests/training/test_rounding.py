"""Parameters in bfloat16 do not lose updates smaller than their last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.small_models import build
from tests.training.test_step import make_batch
from training import optimizer as optimizer_lib
from training import rounding
from training import step as step_lib

STEPS = 24
# Of what a parameter of 1 has between itself and its neighbours, 2^-7 above and 2^-8 below.
TINY = 2.0**-13


def test_the_mean_of_stochastic_roundings_is_the_number():
  count = 20_000
  x = jnp.array([1 + 2**-10, -3.3, 1e-30, 0.7, 2**-8 * 1.01])
  drawn = rounding.stochastic(jnp.broadcast_to(x, (count, x.size)), jax.random.key(0))
  drawn = np.asarray(drawn, np.float64)
  for column, exact in zip(drawn.T, np.asarray(x, np.float64), strict=True):
    values, times = np.unique(column, return_counts=True)
    low, high = values
    assert low < exact < high
    assert np.asarray(jnp.asarray(low, jnp.bfloat16).view(jnp.uint16)) == pytest.approx(
      np.asarray(jnp.asarray(high, jnp.bfloat16).view(jnp.uint16)), abs=1
    )
    share = (exact - low) / (high - low)
    # Five standard deviations of a binomial share.
    assert times[1] / count == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / count))


def test_what_bfloat16_holds_stays_as_it_is():
  random = np.random.default_rng(0).integers(0, 2**16, 4000).astype(np.uint16)
  special = np.array([0x0000, 0x8000, 0x7F80, 0xFF80, 0x7F7F, 0x0001], np.uint16)
  kept = jnp.asarray(np.concatenate([random, special])).view(jnp.bfloat16)
  found = rounding.stochastic(kept.astype(jnp.float32), jax.random.key(1))
  np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(kept, np.float32))


@pytest.fixture(scope="module")
def params():
  matrix = jax.random.normal(jax.random.key(0), (64, 64))
  return {"kernel": matrix.astype(jnp.bfloat16), "a_param": matrix[0]}


def shrunk(params, *, master=False, mode="nearest"):
  """Parameters and optimizer state after a few updates by -`TINY` of each parameter."""
  optimizer = optax.stateless(lambda gradient, params: jax.tree.map(lambda p: -TINY * p, params))
  if master:
    optimizer = optimizer_lib.with_master_copy(optimizer)

  def float32(params):
    return jax.tree.map(lambda p: p.astype(jnp.float32), params)

  @jax.jit
  def step(params, state, key):
    updates, state = optimizer.update(params, state, float32(params))
    return rounding.apply_updates(params, updates, mode=mode, key=key), state

  state = optimizer.init(float32(params))
  for index in range(STEPS):
    params, state = step(params, state, jax.random.key(index))
  return params, state


def test_rounding_to_nearest_loses_tiny_updates(params):
  """Without either remedy the updates are lost."""
  after, _ = shrunk(params)
  np.testing.assert_array_equal(after["kernel"], params["kernel"])


def test_stochastic_rounding_keeps_tiny_updates_in_the_mean(params):
  after, _ = shrunk(params, mode="stochastic")
  found, before = (np.abs(np.asarray(p["kernel"], np.float64)) for p in (after, params))
  # A step moves a parameter by at most 2^-7 of it, as seldom as makes the mean TINY.
  deviation = np.sqrt(STEPS * TINY * 2.0**-7 / before.size)
  assert 1 - (found / before).mean() == pytest.approx(STEPS * TINY, abs=5 * deviation)
  # What is float32 already is not drawn.
  expected = np.asarray(params["a_param"], np.float64) * (1 - TINY) ** STEPS
  np.testing.assert_allclose(after["a_param"], expected, rtol=STEPS * 2.0**-24)


def test_a_master_copy_takes_tiny_updates_exactly_and_the_parameters_are_its_roundings(params):
  after, state = shrunk(params, master=True)
  for name, value in params.items():
    expected = np.asarray(value, np.float64) * (1 - TINY) ** STEPS
    np.testing.assert_allclose(state.master[name], expected, rtol=STEPS * 2.0**-24)
    np.testing.assert_array_equal(after[name], state.master[name].astype(value.dtype))
  assert not np.array_equal(after["kernel"], params["kernel"])


def test_a_step_that_is_skipped_leaves_the_master_copy_alone():
  model = build("hawk", depth=1, dtype="float32", param_dtype="bfloat16")
  adam = optimizer_lib.AdamW(
    learning_rate=optax.constant_schedule(1e-2), master_copy=True
  ).transformation()
  options = step_lib.StepOptions()
  state = jax.jit(lambda: step_lib.initial_state(model, adam, options, seed=0))()
  broken = jax.tree.map(lambda x: x, state.params)
  broken["final_norm"]["scale"] = broken["final_norm"]["scale"].at[0].set(jnp.nan)
  after, metrics = jax.jit(step_lib.make_train_step(model, adam, options))(
    state._replace(params=broken), make_batch()
  )
  assert int(metrics["skipped"]) == 1
  jax.tree.map(np.testing.assert_array_equal, after.opt_state.master, state.opt_state.master)


def test_a_way_to_round_that_does_not_exist_is_refused():
  with pytest.raises(ValueError, match="rounding='up' is unknown: use one of nearest, stochastic"):
    step_lib.StepOptions(rounding="up")
