"""States that are carried from row to row: losses and gradients are those of one long row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from contract.finding import compare_trees
from data.loader import batch_of_rows
from models.lora import adapted
from tests.small_models import VOCAB_SIZE, build, initialize
from training import carried_state, losses, time_chunks
from training import step as step_lib

ROWS, LENGTH, PIECES = 3, 24, 3
# A document over all rows, several that end within one, and padding.
LENGTHS = ((72,), (5, 40, 27), (24, 10, 20, 6))


def streams() -> tuple[np.ndarray, np.ndarray]:
  """Tokens and segment ids [B, 72] of documents, of which the last row lacks 12."""
  tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (ROWS, PIECES * LENGTH))
  ids = np.zeros(tokens.shape, np.int64)
  for row, lengths in enumerate(LENGTHS):
    ids[row, : sum(lengths)] = np.repeat(1 + np.arange(len(lengths)), lengths)
  return tokens, ids


def in_rows() -> list[dict[str, np.ndarray]]:
  """The streams as a loader gives them: rows that are read one after another."""
  tokens, ids = streams()
  found = []
  for start in range(0, PIECES * LENGTH, LENGTH):
    part = slice(start, start + LENGTH)
    own = np.where(ids[:, part] > 0, ids[:, part] - ids[:, part][:, :1] + 1, 0)
    before = np.full(ROWS, -1)
    if start:
      goes_on = (ids[:, start - 1] == ids[:, start]) & (ids[:, start] > 0)
      before = np.where(goes_on, tokens[:, start - 1], -1)
    found.append(batch_of_rows(tokens[:, part], own, bos_id=0, before=before))
  return found


@functools.cache
def griffin():
  model = build("griffin", depth=3)
  return model, initialize(model)


def total(losses):
  return sum(jnp.sum(nll + 1e-2 * squares) for nll, squares in losses)


def whole(model, params):
  tokens, ids = streams()
  return losses.token_losses(model, params, batch_of_rows(tokens, ids, bos_id=0))


def carried(model, params, state):
  found = []
  for batch in in_rows():
    each, state = carried_state.losses_from(state, model, params, batch)
    found.append(each)
  return found, state


@pytest.fixture(scope="module")
def expected():
  model, params = griffin()
  run = jax.jit(jax.value_and_grad(lambda params: total([whole(model, params)])))
  return run(params)


# Chunks that are shorter than the window of 8, and rows that are run whole.
@pytest.mark.parametrize("chunk", [None, 6])
def test_losses_and_gradient_are_those_of_one_row(expected, chunk):
  """The gradient also where the caller lets it pass from row to row."""
  model, params = griffin()
  model = model.clone(time_chunk=chunk)
  state = carried_state.initial_state(model, ROWS)
  run = jax.jit(jax.value_and_grad(lambda params: total(carried(model, params, state)[0])))
  loss, gradient = run(params)
  assert float(loss) == pytest.approx(float(expected[0]), rel=1e-6)
  assert not compare_trees("gradient", gradient, expected[1], 1e-5).failed


def test_gradients_pass_into_the_state_unless_the_caller_stops_them():
  model, params = griffin()
  state = jax.tree.map(
    lambda x: x + 0.1 if x.dtype == jnp.float32 else x, carried_state.initial_state(model, ROWS)
  )
  state = state._replace(position=state.position + 8)
  batch = in_rows()[0] | {"segment_ids": np.ones((ROWS, LENGTH), np.int32)}

  def loss(values, carry):
    return total([carried_state.losses_from(carry(state, values), model, params, batch)[0]])

  def of_first(state, h):
    first, *others = state.stack["repeats"]
    return state._replace(stack=state.stack | {"repeats": (first._replace(h=h), *others)})

  h = state.stack["repeats"][0].h
  passed = jax.jit(jax.grad(functools.partial(loss, carry=of_first)))(h)
  assert float(jnp.abs(passed).min(axis=-1).max()) > 0
  stopped = jax.jit(
    jax.grad(functools.partial(loss, carry=lambda *a: jax.lax.stop_gradient(of_first(*a))))
  )(h)
  assert not np.any(np.asarray(stopped))


def test_a_state_of_zeros_changes_nothing():
  """In a model of recurrences to the last bit; a window is summed up in another order."""
  for name, compare in (
    ("hawk", np.testing.assert_array_equal),
    ("griffin", functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)),
  ):
    model = build(name, depth=3)
    params, batch = initialize(model), in_rows()[0]
    run = jax.jit(functools.partial(carried_state.losses_from, model=model))
    found, _ = run(carried_state.initial_state(model, ROWS), params=params, batch=batch)
    jax.tree.map(
      compare, found, jax.jit(functools.partial(losses.token_losses, model))(params, batch)
    )


def test_batches_count_on_from_the_state():
  model = build("hawk", depth=1)
  first, second, _ = in_rows()
  state = carried_state.initial_state(model, ROWS)
  found = carried_state.continued(state, first)
  assert not any(np.any(found[name] != first[name]) for name in first)
  state = state._replace(position=jnp.array([24, 19, 1]), segment_id=jnp.array([2, 3, 2]))
  found = carried_state.continued(state, second)
  np.testing.assert_array_equal(found["positions"][:, 0], [24, 19, 0])
  np.testing.assert_array_equal(found["positions"][1, 20:23], [39, 0, 1])
  np.testing.assert_array_equal(found["segment_ids"][:, [0, -1]], [[2, 2], [3, 4], [3, 4]])


def test_the_state_says_how_far_each_document_is():
  model, params = griffin()
  state = carried_state.initial_state(model, ROWS)
  run = jax.jit(functools.partial(carried, model))
  _, state = run(params, state)
  np.testing.assert_array_equal(state.position, [72, 27, 1])
  np.testing.assert_array_equal(state.segment_id, [2, 4, 5])
  axes = carried_state.batch_axes(model)
  for leaf, axis in zip(jax.tree.leaves(state), jax.tree.leaves(axes), strict=True):
    assert axis == -1 or leaf.shape[axis] == ROWS
  assert axes.stack["repeats"][0].h == 1
  assert axes.position == 0


def test_what_cannot_be_carried_is_refused():
  with pytest.raises(carried_state.CarryError, match=r"SelfAttention, whose state grows .*local"):
    carried_state.initial_state(build("transformer", depth=1), ROWS)
  model, params = griffin()
  model = model.clone(time_chunk=7)
  state = carried_state.initial_state(model, ROWS)
  with pytest.raises(time_chunks.ChunkError, match="chunks of 7 tokens do not divide rows of 24"):
    jax.eval_shape(lambda: carried_state.losses_from(state, model, params, in_rows()[0]))


def test_in_a_skipped_step_states_follow_the_data_and_what_is_not_finite_starts_afresh():
  """A lane has a state of NaN; the others go on."""
  model = build("griffin", depth=3)
  sgd, options = optax.sgd(1e-2), step_lib.StepOptions(carry_state=True)
  create = functools.partial(step_lib.initial_state, model, sgd, options, 0, rows=ROWS)
  step = step_lib.jit_train_step(model, sgd, options)
  first, second, third = in_rows()
  state, metrics = step(jax.jit(create)(), first)
  assert metrics["skipped"] == 0
  expected, _ = step(jax.tree.map(jnp.copy, state), second)
  params = jax.device_get(state.params)
  spoilt = jax.tree.map(
    lambda x, axis: x.at[:, 0].set(jnp.nan) if axis == 1 and x.dtype == jnp.float32 else x,
    state.carried,
    carried_state.batch_axes(model),
  )
  state, metrics = step(state._replace(carried=spoilt), second)
  assert metrics["skipped"] == 1
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), params)
  np.testing.assert_array_equal(state.carried.position, [0, *expected.carried.position[1:]])
  for leaf, other, axis in zip(
    *map(jax.tree.leaves, (state.carried, expected.carried, carried_state.batch_axes(model))),
    strict=True,
  ):
    if axis >= 0:
      np.testing.assert_allclose(
        jnp.delete(leaf, 0, axis), jnp.delete(other, 0, axis), rtol=1e-5, atol=1e-6
      )
  _, metrics = step(state, third)
  assert metrics["skipped_in_a_row"] == 0


def test_adapters_are_trained_from_carried_states():
  """Each step's loss is that of rows that go on; weights stay, and adapters change."""
  model, sgd = adapted(build("griffin", depth=2), rank=2), optax.sgd(1e-1)
  options = step_lib.StepOptions(carry_state=True)
  state = step_lib.initial_state(model, sgd, options, 0, rows=ROWS)
  step = jax.jit(step_lib.make_train_step(model, sgd, options))
  run = jax.jit(functools.partial(carried_state.losses_from, model=model))
  behind, frozen = state.carried, step_lib.split(model, state.params)[1]
  for batch in in_rows():
    (nll, _), behind = run(behind, params=state.params, batch=batch)
    state, metrics = step(state, batch)
    expected = float(jnp.sum(nll) / batch["loss_weights"].sum())
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-6)
    assert int(state.carried.position.max()) == int(behind.position.max())
    jax.tree.map(np.testing.assert_array_equal, step_lib.split(model, state.params)[1], frozen)
    behind = state.carried
  assert any(float(jnp.abs(leaf).max()) > 0 for leaf in adapters(state.params, "lora_b"))


def adapters(params, name):
  """The adapters' matrices of a name."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return [leaf for path, leaf in leaves if path[-1].key == name]
