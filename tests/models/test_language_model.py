"""Properties that every model of the zoo must have."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layers.stack import unstack
from models.accounting import tree_bytes
from tests.small_models import VOCAB_SIZE, WINDOW, build, initialize

LENGTH = 4 * WINDOW + 3
# Two float32 evaluation orders of a 5-block network: a few hundred roundings of relative size 6e-8
# on logits of size 4.
TOLERANCE = 5e-5


def random_tokens(seed: int, batch: int = 2, length: int = LENGTH) -> jax.Array:
  return jax.random.randint(jax.random.key(seed), (batch, length), 0, VOCAB_SIZE)


@pytest.fixture(scope="module")
def apply(model):
  @partial(jax.jit, static_argnames=("capacity", "last_only"))
  def apply(params, tokens, **options):
    return model.apply({"params": params}, tokens, **options)

  return apply


def decode(apply, params, tokens, state):
  """Feeds tokens one by one: [B, T] to logits [B, T, V]."""
  steps = []
  for t in range(tokens.shape[1]):
    logits, state = apply(params, tokens[:, t : t + 1], state=state)
    steps.append(logits)
  return jnp.concatenate(steps, axis=1), state


def test_changing_a_token_changes_no_logit_before_it(apply, params):
  tokens = random_tokens(1)
  changed = tokens.at[:, 20].set((tokens[:, 20] + 1) % VOCAB_SIZE)
  before, _ = apply(params, tokens)
  after, _ = apply(params, changed)
  np.testing.assert_array_equal(before[:, :20], after[:, :20])
  assert jnp.abs(before[:, 20] - after[:, 20]).max() > 1e-3


def test_packed_documents_equal_separate_documents(apply, params):
  tokens = random_tokens(2)
  ids = jnp.array([[1] * 5 + [2] * 17 + [3] * (LENGTH - 22), [1] * 30 + [2] * (LENGTH - 30)])
  packed, _ = apply(params, tokens, segment_ids=ids)
  for row, start, end in [(0, 0, 5), (0, 5, 22), (0, 22, LENGTH), (1, 0, 30), (1, 30, LENGTH)]:
    alone, _ = apply(params, tokens[row : row + 1, start:end])
    np.testing.assert_allclose(packed[row, start:end], alone[0], atol=TOLERANCE)


def test_padding_after_a_document_changes_nothing(apply, params):
  tokens = random_tokens(3)
  ids = jnp.array([[1] * 20 + [0] * (LENGTH - 20)] * 2)
  padded, _ = apply(params, tokens, segment_ids=ids)
  alone, _ = apply(params, tokens[:, :20])
  np.testing.assert_allclose(padded[:, :20], alone, atol=TOLERANCE)
  assert np.isfinite(padded).all()


@pytest.mark.parametrize("prefill", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 1])
def test_decode_equals_teacher_forcing_past_the_window(apply, params, prefill):
  tokens = random_tokens(4)
  whole, _ = apply(params, tokens)
  logits, state = apply(params, tokens[:, :prefill], capacity=LENGTH)
  np.testing.assert_allclose(logits, whole[:, :prefill], atol=TOLERANCE)
  steps, _ = decode(apply, params, tokens[:, prefill:], state)
  np.testing.assert_allclose(steps, whole[:, prefill:], atol=TOLERANCE)


def test_decode_from_the_initial_state_equals_teacher_forcing(model, apply, params):
  tokens = random_tokens(5, length=2 * WINDOW + 1)
  whole, _ = apply(params, tokens)
  steps, _ = decode(apply, params, tokens, model.initial_state(2, tokens.shape[1]))
  np.testing.assert_allclose(steps, whole, atol=TOLERANCE)


@pytest.mark.parametrize("chunks", [(3, 20, 12), (WINDOW, 2, 25), (20, 1, 1, 13)])
def test_prefill_in_chunks_equals_prefill_at_once(apply, params, chunks):
  tokens = random_tokens(6)
  whole, _ = apply(params, tokens)
  logits, state = apply(params, tokens[:, : chunks[0]], capacity=LENGTH)
  parts, start = [logits], chunks[0]
  for size in chunks[1:]:
    logits, state = apply(params, tokens[:, start : start + size], state=state)
    parts.append(logits)
    start += size
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=TOLERANCE)


def test_left_padded_prompts_decode_as_if_alone(apply, params):
  tokens = random_tokens(7)
  padding = 6
  ids = jnp.array([[0] * padding + [1] * (20 - padding), [1] * 20])
  logits, state = apply(params, tokens[:, :20], segment_ids=ids, capacity=LENGTH)
  steps, _ = decode(apply, params, tokens[:, 20:], state)
  alone, _ = apply(params, tokens[:1, padding:])
  both = jnp.concatenate([logits[:1, padding:], steps[:1]], axis=1)
  np.testing.assert_allclose(both, alone, atol=TOLERANCE)


def test_last_only_gives_the_last_logits(apply, params):
  tokens = random_tokens(8)
  whole, _ = apply(params, tokens)
  last, _ = apply(params, tokens, last_only=True)
  np.testing.assert_allclose(last, whole[:, -1:], atol=TOLERANCE)


def test_state_size_does_not_grow_with_capacity_unless_attention_is_global(model, name):
  sizes = [
    tree_bytes(jax.eval_shape(lambda c=capacity: model.initial_state(2, c)))
    for capacity in (WINDOW, 1000)
  ]
  assert (sizes[0] == sizes[1]) == (name != "transformer")


def test_prefill_state_has_the_initial_state_s_shapes(model, apply, params):
  _, state = apply(params, random_tokens(9, length=5), capacity=LENGTH)
  expected = jax.eval_shape(lambda: model.initial_state(2, LENGTH))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
    lambda x: (x.shape, x.dtype), expected
  )


def loss_and_gradient(model, params, tokens):
  def loss(params):
    logits, _ = model.apply({"params": params}, tokens[:, :-1])
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1))

  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
  "options", [{"remat": "products"}, {"remat": "mixers"}, {"remat": "full"}, {"unroll": 2}]
)
def test_remat_and_unroll_change_no_gradient(name, model, params, options):
  tokens = random_tokens(10)
  expected = loss_and_gradient(model, params, tokens)
  found = loss_and_gradient(build(name, **options), params, tokens)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), expected, found)


def test_scanned_repeats_equal_unrolled_blocks(model, params):
  tokens = random_tokens(11)
  cut = {**params, "stack": unstack(params["stack"])}
  expected, _ = model.apply({"params": params}, tokens)
  found, _ = model.clone(scan=False).apply({"params": cut}, tokens)
  np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_bfloat16_activations_stay_close_to_float32(name, params, apply):
  """Each block rounds its output to 8 bits: 2^-9 relative, five blocks of two outputs each."""
  tokens = random_tokens(12)
  exact, _ = apply(params, tokens)
  rounded, _ = build(name, dtype="bfloat16").apply({"params": params}, tokens)
  assert rounded.dtype == jnp.float32
  error = jnp.sqrt(jnp.mean((rounded - exact) ** 2) / jnp.mean(exact**2))
  assert error < 10 * 2**-8


def test_bfloat16_parameters_train(name):
  model = build(name, dtype="bfloat16", param_dtype="bfloat16")
  params = initialize(model)
  loss, gradient = loss_and_gradient(model, params, random_tokens(13))
  assert abs(loss - np.log(VOCAB_SIZE)) < 1
  for leaf in jax.tree.leaves(gradient):
    assert np.isfinite(leaf.astype(jnp.float32)).all()
    assert jnp.abs(leaf.astype(jnp.float32)).max() > 0


def test_unknown_remat_policy_names_the_known_ones():
  with pytest.raises(
    ValueError,
    match=r"'ful' is unknown: use one of \['none', 'products', 'mixers', 'full', 'offload'\]",
  ):
    initialize(build("hawk", remat="ful"))


def test_heads_that_do_not_divide_the_width_are_refused():
  from models.backbone import Backbone
  from models.transformer import transformer

  with pytest.raises(ValueError, match="heads=3 does not divide width=32"):
    transformer(Backbone(vocab_size=8, width=32, depth=1), heads=3)
