"""Rows that begin with the states of others: which rows, which states, from which step on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from contract.finding import compare_trees
from data.loader import batch_of_rows
from tests.small_models import VOCAB_SIZE, build, initialize
from training import carried_state, passed_state
from training import step as step_lib

ROWS, LENGTH, SHARE = 4, 24, 0.75


def batches(count: int) -> list[dict[str, np.ndarray]]:
  """Rows of one document or two; the last ends in padding."""
  random = np.random.default_rng(0)
  tokens = random.integers(0, VOCAB_SIZE, (count, ROWS, LENGTH))
  ids = np.where(np.arange(LENGTH) < random.integers(8, 40, (count, ROWS, 1)), 1, 2)
  ids[:, -1, -4:] = 0
  return [batch_of_rows(*pair, bos_id=0) for pair in zip(tokens, ids, strict=True)]


def train(options, steps=3, **fields):
  """The losses and train states of a few steps of plain gradient descent."""
  model, sgd = build("hawk", depth=1, **fields), optax.sgd(1e-1)
  state = jax.jit(functools.partial(step_lib.initial_state, model, sgd, options, 0, rows=ROWS))()
  step = jax.jit(step_lib.make_train_step(model, sgd, options))
  losses, states = [], [state]
  for batch in batches(steps):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
    states.append(state)
  return losses, states


@functools.cache
def passed(after=0, pieces=1, chunk=None):
  options = step_lib.StepOptions(
    initial_state="passed", passed_share=SHARE, passed_after=after, grad_accum_steps=pieces
  )
  return train(options, time_chunk=chunk)


@functools.cache
def plain():
  return train(step_lib.StepOptions())[0]


def test_rows_begin_with_states_of_other_rows_or_with_nothing():
  """In a model with a window, whose ring of keys has a place that all rows share."""
  model = build("griffin", depth=3)
  first = carried_state.initial_state(model, ROWS)
  run = jax.jit(functools.partial(carried_state.losses_from, model=model))
  _, states = run(first, params=initialize(model), batch=batches(1)[0])
  axes = jax.tree.leaves(carried_state.batch_axes(model))

  def rows_of(state):
    """Every row's arrays in one vector."""
    leaves = zip(jax.tree.leaves(state), axes, strict=True)
    return np.concatenate(
      [np.moveaxis(x, axis, 0).reshape(ROWS, -1) for x, axis in leaves if axis >= 0], axis=1
    )

  left, nothing = rows_of(states), rows_of(first)
  assert len(np.unique(left, axis=0)) == ROWS
  orders, kept = set(), 0
  draw = jax.jit(functools.partial(passed_state.drawn, model, states))
  for seed in range(40):
    key = jax.random.key(seed)
    found = rows_of(draw(key, 1.0))
    orders.add(tuple(int(np.flatnonzero((left == row).all(axis=1)).item()) for row in found))
    some = rows_of(draw(key, 0.25))
    is_passed = (some == found).all(axis=1)
    np.testing.assert_array_equal(some[~is_passed], nothing[~is_passed])
    kept += int(is_passed.sum())
  assert all(sorted(order) == list(range(ROWS)) for order in orders)
  assert len(orders) > 10
  assert 20 < kept < 60  # 40 of 160 are expected, and 5.5 is the standard deviation
  np.testing.assert_array_equal(rows_of(draw(key, 0.0)), nothing)


def test_the_loss_is_that_of_rows_that_go_on_from_the_drawn_states():
  losses, states = passed()
  batch, model = batches(3)[1], build("hawk", depth=1)
  key = jax.random.fold_in(jax.random.wrap_key_data(states[1].rng), 1)

  @jax.jit
  def expected(state):
    before = passed_state.drawn(model, state.carried, key, SHARE)
    (nll, _), _ = carried_state.losses_from(before, model, state.params, batch)
    return jnp.sum(nll) / jnp.sum(batch["loss_weights"])

  assert losses[1] == pytest.approx(float(expected(states[1])), rel=1e-6)
  assert abs(losses[1] - plain()[1]) > 1e-4


def test_no_state_behind_padding_is_passed():
  _, (_, *states) = passed()
  model = build("hawk", depth=1)
  trees = carried_state.initial_state(model, ROWS), carried_state.batch_axes(model)
  for state in states:
    assert (np.asarray(state.carried.position) > 0).tolist() == [True] * (ROWS - 1) + [False]
    for leaf, first, axis in zip(*map(jax.tree.leaves, (state.carried, *trees)), strict=True):
      leaf, first = (np.asarray(each).take(-1, axis) for each in (leaf, first))
      np.testing.assert_array_equal(leaf, first)


def test_until_states_are_passed_a_run_is_one_without():
  late, _ = passed(after=2)
  np.testing.assert_allclose(late[:2], plain()[:2], rtol=1e-6)
  assert late[2] != pytest.approx(plain()[2], rel=1e-5)


def test_microbatches_and_chunks_of_time_change_nothing():
  expected, states = passed()
  losses, found = passed(pieces=2, chunk=8)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  difference = compare_trees("parameters", found[-1].params, states[-1].params, 1e-4)
  assert not difference.failed, difference


def test_what_cannot_be_is_refused():
  with pytest.raises(ValueError, match="initial_state='past' must be one of zero, passed"):
    step_lib.StepOptions(initial_state="past")
  with pytest.raises(
    ValueError, match=r"carry_state=True, rows go on from their own .* one of the"
  ):
    step_lib.StepOptions(initial_state="passed", carry_state=True)
