"""Rows in chunks of time have the losses and gradient of whole rows, in the memory of a chunk."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contract import float64
from contract.finding import compare_trees
from contract.subject import Subject
from data.loader import batch_of_rows
from experiment import model_zoo
from models.accounting import list_parameters, tree_bytes
from models.backbone import Backbone
from models.lora import adapted
from parallel import shards
from parallel.sharding_plan import on_one_device
from tests.contract import broken_mixers
from tests.small_models import VOCAB_SIZE, build, initialize
from training import losses, time_chunks
from training import step as step_lib
from training.saved_residuals import activation_bytes

LENGTH = 48


def packed(rows: int = 4, length: int = LENGTH) -> dict:
  """Documents of random lengths, with other padding at the end of each row."""
  random = np.random.default_rng(0)
  tokens = random.integers(0, VOCAB_SIZE, (rows, length))
  ids = np.cumsum(random.uniform(size=tokens.shape) < 0.05, axis=1) + 1
  ids[np.arange(length) >= length - 5 * np.arange(rows)[:, None]] = 0
  return batch_of_rows(tokens, ids, bos_id=0)


def of_zoo(name: str):
  """A model of the zoo at the contract's size, each kind of mixer twice, and parameters."""
  subject = Subject(model_zoo.build([model_zoo.file_of(name)])[0])
  return subject.without_remainder()


def gradient(model, params, batch, options=None):
  """(loss, gradient) of a training step's batch, on one device."""
  options = options or step_lib.StepOptions(z_loss=1e-2)
  key = jax.random.key_data(jax.random.key(0))
  run = jax.jit(functools.partial(step_lib.loss_and_gradient, model, options))
  (loss, _), found = run(params, batch, key)
  return float(loss), found


@pytest.fixture(scope="module")
def griffin():
  model = build("griffin", depth=2)
  return model, initialize(model)


@pytest.fixture(scope="module")
def whole(griffin):
  return gradient(*griffin, packed())


def assert_equal(found, expected, allowed=1e-5):
  assert float(found[0]) == pytest.approx(float(expected[0]), rel=allowed)
  difference = compare_trees("gradient", found[1], expected[1], allowed)
  assert not difference.failed, difference


# Chunks of one token, and longer than the window of 8 and the convolution; 6 and 12 are below.
@pytest.mark.parametrize("size", [1, 16])
def test_chunks_of_any_size_have_the_gradient_of_whole_rows(griffin, whole, size):
  model, params = griffin
  assert_equal(gradient(model.clone(time_chunk=size), params, packed()), whole)


def test_chunks_of_microbatches_and_pieces_of_logits(griffin, whole):
  model, params = griffin
  five_steps = 2 * VOCAB_SIZE * 4 * 5
  options = step_lib.StepOptions(z_loss=1e-2, grad_accum_steps=2, max_logit_bytes=five_steps)
  assert_equal(gradient(model.clone(time_chunk=12), params, packed(), options), whole)


def test_adapters_get_the_gradient_of_whole_rows():
  model = adapted(build("hawk", depth=2), rank=2)
  random = np.random.default_rng(1)
  # B starts at zero, and would hide the gradient of A.
  params = jax.tree.map(
    lambda x: x + 0.1 * random.standard_normal(x.shape).astype(np.float32), initialize(model)
  )
  found = gradient(model.clone(time_chunk=12), params, packed())
  assert_equal(found, gradient(model, params, packed()))


@pytest.mark.parametrize(
  ("name", "allowed"),
  # CG-LRU drops full turns, which are as exact as 2 pi is in float32.
  [("griffin", 1e-12), ("mamba2", 1e-12), ("cg_hawk", 1e-6)],
)
def test_in_float64_the_gradients_are_equal(name, allowed):
  model, params = of_zoo(name)
  batch = packed(rows=2)

  def loss(model, params):
    return jnp.sum(losses.token_losses(model, params, batch)[0]) / batch["loss_weights"].sum()

  with jax.enable_x64(True):
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    whole, chunked = (
      float64.evaluate(jax.value_and_grad(functools.partial(loss, each)), params)(exact)
      for each in (model, model.clone(time_chunk=6))
    )
    assert jax.tree.leaves(chunked[1])[0].dtype == jnp.float64
    assert_equal(chunked, whole, allowed)


def test_gradients_of_bfloat16_parameters_add_up_in_float32(griffin):
  """The sum of 512 equal gradients would stop growing at 256 of them."""
  model = griffin[0].with_types(jnp.float32, jnp.bfloat16)
  tokens = np.full((1, 512), 3)
  batch = batch_of_rows(tokens, np.broadcast_to(1 + np.arange(512), (1, 512)), bos_id=0)
  params = initialize(model)
  _, found = gradient(model.clone(time_chunk=1), params, batch)
  _, expected = gradient(griffin[0], jax.tree.map(lambda x: x.astype(jnp.float32), params), batch)
  assert not compare_trees("gradient", found, expected, 2**-8).failed


def test_losses_of_a_row_that_chunks_do_not_divide_are_those_of_the_row(griffin):
  model, params = griffin
  batch = packed(length=37)
  expected = jax.jit(functools.partial(losses.token_losses, model))(params, batch)
  chunked = model.clone(time_chunk=8)
  found = jax.jit(functools.partial(losses.token_losses, chunked))(params, batch)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)


def temporary(model, length, rows=1, options=None):
  """Bytes of the temporary arrays of a loss and its gradient."""
  key = jax.random.key_data(jax.random.key(0))
  options = options or step_lib.StepOptions()
  run = jax.jit(functools.partial(step_lib.loss_and_gradient, model, options))
  params = jax.eval_shape(functools.partial(initialize, model))
  compiled = run.lower(params, step_lib.abstract_batch(rows, length), key).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_that_of_a_chunk_and_the_states():
  """Of sixteen times the tokens, only batch, losses and states grow."""
  chunk, row, repetitions = 64, 1024, 6
  model = build("griffin", depth=2 * repetitions)
  state = tree_bytes(jax.eval_shape(lambda: model.initial_state(1, row)))
  weights = tree_bytes(jax.eval_shape(functools.partial(initialize, model)))
  grown = temporary(model.clone(time_chunk=chunk), row) - temporary(model, chunk)
  # Gradients of the repetition that is being added to the sum of all; a state per border; five
  # arrays and two losses per token.
  assert grown < 1.1 * (2 * weights / repetitions + row // chunk * state + 7 * 4 * row)


def test_gradients_of_microbatches_are_added_up_in_place():
  repetitions = 6
  model = build("griffin", depth=2 * repetitions)
  weights = tree_bytes(jax.eval_shape(functools.partial(initialize, model)))
  options = step_lib.StepOptions(grad_accum_steps=4)
  grown = temporary(model, 64, rows=4, options=options) - temporary(model, 64)
  assert grown < 1.1 * (2 * weights / repetitions + 7 * 4 * 4 * 64)


def test_plans_count_the_activations_of_a_chunk_and_the_states(griffin):
  model, _ = griffin
  chunk, row = 64, 1024

  def kept(model, length):
    sharding_plan = on_one_device(list_parameters(model))
    return activation_bytes(model, sharding_plan, step_lib.StepOptions(), rows=2, length=length)

  state = tree_bytes(jax.eval_shape(lambda: model.initial_state(2, row)))
  found = kept(model.clone(time_chunk=chunk), row)
  between = row // chunk * state + 5 * 4 * 2 * row
  assert found == pytest.approx(kept(model, chunk) + between, rel=0.02)


def trace(model, length=LENGTH):
  options = step_lib.StepOptions()
  params = jax.eval_shape(functools.partial(initialize, model))
  key = jax.random.key_data(jax.random.key(0))
  function = functools.partial(step_lib.loss_and_gradient, model, options)
  jax.eval_shape(function, params, step_lib.abstract_batch(2, length), key)


def test_a_chunk_that_does_not_divide_the_row_is_refused():
  with pytest.raises(
    ValueError,
    match=r"chunks of 7 tokens do not divide rows of 48 tokens: every step would compute 1 tok",
  ):
    trace(build("hawk", depth=1, time_chunk=7))
  trace(build("hawk", depth=1, time_chunk=64))  # a row shorter than a chunk is one


def test_attention_over_all_tokens_is_refused():
  with pytest.raises(
    time_chunks.ChunkError,
    match=r"SelfAttention, whose state grows with the row: .* or train a model with loc",
  ):
    trace(build("transformer", depth=1, time_chunk=16))


def test_a_mixer_whose_state_has_no_gradient_is_refused(monkeypatch):
  monkeypatch.setattr(broken_mixers.Averaging, "differentiable_state", False, raising=False)
  backbone = Backbone(vocab_size=VOCAB_SIZE, width=16, depth=1, time_chunk=16)
  with pytest.raises(ValueError, match=r"broken_mixers.Averaging: it declares differentiable_stat"):
    trace(broken_mixers.model(backbone, mixer=broken_mixers.Averaging))


def test_chunks_that_devices_cannot_share_are_refused(griffin):
  model = griffin[0].clone(time_chunk=16)
  split = shards.Region(table=(("time", ("seq",)),), sizes=(("seq", 3),))
  with shards.per_device(split), pytest.raises(ValueError, match=r"Set .*time_chunk to a multiple"):
    time_chunks._check_model(model)
