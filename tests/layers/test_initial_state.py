"""Learned initial states: each document begins with them, in any row, chunk and call."""

from __future__ import annotations

import functools
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conversion import adapters
from layers import initial_state
from layers.attention import SelfAttention
from layers.cg_lru import CGLRU
from layers.delta_net import GatedDeltaNet, KimiDeltaAttention
from layers.hgrn2 import HGRN2
from layers.mamba2 import Mamba2Mixer
from layers.mlstm import MLSTM
from layers.recurrent_block import RecurrentBlock
from layers.rg_lru import RGLRU
from layers.segments import Segments
from models.backbone import Backbone
from models.hawk import hawk
from models.hybrid import hybrid
from models.kimi_linear import kimi_linear
from models.lora import adapted
from models.transformer import transformer
from tests.small_models import VOCAB_SIZE, build, initialize
from training.step import StepOptions

WIDTH, LENGTH = 16, 13
# The second row begins within a document, and ends in padding.
ENDS, GOES_ON = ((3, LENGTH), (5, 10)), (1, 0)
MATRIX = {
  "mamba2": functools.partial(Mamba2Mixer, heads=4, head_dim=4, state_size=6, groups=2, chunk=4),
  "hgrn2": functools.partial(HGRN2, heads=2, key_dim=4, value_dim=8, chunk=4),
  "mlstm": functools.partial(MLSTM, heads=2, key_dim=4, value_dim=8, chunk=4),
  "deltanet": functools.partial(
    GatedDeltaNet, heads=2, key_dim=8, value_dim=4, corrections=2, decays=False, chunk=4
  ),
  "gated_deltanet": functools.partial(GatedDeltaNet, heads=2, key_dim=8, value_dim=4, chunk=4),
  "kimi_delta": functools.partial(
    KimiDeltaAttention, heads=2, key_dim=8, value_dim=4, rank=4, chunk=4
  ),
}


def noisy(module, *arguments):
  """Parameters of a module, none of them zero, and inputs [2, T, D]."""
  x = jax.random.normal(jax.random.key(1), (2, LENGTH, WIDTH))
  params = nn.unbox(module.init(jax.random.key(0), x, *arguments))["params"]
  random = np.random.default_rng(0)
  return jax.tree.map(lambda p: p + 0.5 * random.standard_normal(p.shape, np.float32), params), x


def rows() -> Segments:
  """Two documents, and two of which the first began before the row."""
  positions, ids = np.zeros((2, 2, LENGTH), np.int32)
  for row, ends in enumerate(ENDS):
    for number, (start, end) in enumerate(pairwise((0, *ends))):
      positions[row, start:end] = np.arange(end - start) + 40 * ((row, start) == GOES_ON)
      ids[row, start:end] = number + 1
  return Segments(jnp.asarray(ids), jnp.asarray(positions))


def documents():
  return [(row, *span) for row, ends in enumerate(ENDS) for span in pairwise((0, *ends))]


@pytest.mark.parametrize("name", MATRIX)
def test_documents_go_on_from_the_learned_state(name):
  """Values and gradients are those of calls that go on from it, one per document."""
  module = MATRIX[name](learned_state=True)
  plain, segments = MATRIX[name](implementation="reference"), rows()
  params, x = noisy(module, segments)
  learned = params.pop(initial_state.NAME)["state"]
  weights = jax.random.normal(jax.random.key(2), x.shape)

  def packed(params, learned, x):
    before = module.initial_state(2, LENGTH)
    params = {**params, initial_state.NAME: {"state": learned}}
    y, after = module.apply({"params": params}, x, segments, before)
    return jnp.sum(jnp.where(segments.ids[..., None] > 0, weights * y, 0)), (y, after)

  def alone(params, learned, x):
    found, last = [], None
    for row, start, end in documents():
      state = plain.initial_state(1, LENGTH)
      if (row, start) != GOES_ON:
        bare = not hasattr(state, "_replace")
        state = learned[None] if bare else state._replace(h=learned[None])
      # A document that goes on reads the state as it is.
      part = Segments(*(a[row : row + 1, start:end] for a in segments))
      part = part._replace(positions=50 + jnp.arange(end - start)[None])
      y, last = plain.apply({"params": params}, x[row : row + 1, start:end], part, state)
      found.append(y[0])
      if (row, end) == (0, LENGTH):
        kept = last
    loss = sum(
      jnp.sum(weights[row, start:end] * y)
      for (row, start, end), y in zip(documents(), found, strict=True)
    )
    return loss, (found, kept)

  pulled = jax.jit(jax.grad(packed, (0, 1, 2), has_aux=True))
  gradient, (y, after) = pulled(params, learned, x)
  expected, (found, last) = jax.jit(jax.grad(alone, (0, 1, 2), has_aux=True))(params, learned, x)
  for (row, start, end), each in zip(documents(), found, strict=True):
    np.testing.assert_allclose(y[row, start:end], each, rtol=1e-4, atol=1e-5)
  one, other = (getattr(state, "h", state) for state in (after, last))
  if name == "mlstm":  # multiples of exp(m)
    one, other = (s * jnp.exp(t.m)[..., None, None] for s, t in ((one, after), (other, last)))
  np.testing.assert_allclose(one[0], other[0], rtol=1e-4, atol=1e-5)
  assert float(jnp.abs(gradient[1]).max()) > 0.01
  for mine, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
    size = max(1.0, float(jnp.abs(theirs).max()))
    np.testing.assert_allclose(mine / size, theirs / size, atol=2e-5)


@pytest.mark.parametrize("kind", [RGLRU, CGLRU])
def test_diagonal_recurrences_begin_with_the_learned_state(kind):
  """Against the recurrence token by token in float64: `h_1 = a_1 s + i_1 x_1`."""
  module, segments = kind(2, learned_state=True), rows()
  params, x = noisy(module, segments)
  h, last = jax.jit(lambda params, x: module.apply({"params": params}, x, segments))(params, x)
  blocks = {name: leaf for name, leaf in params.items() if name.startswith("gate")}

  def gates(name):
    gate = {key: np.asarray(value, np.float64) for key, value in blocks[name].items()}
    cut = np.asarray(x, np.float64).reshape(2, LENGTH, 2, -1)
    y = np.einsum("btni,nio->btno", cut, gate["kernel"]).reshape(2, LENGTH, -1) + gate["bias"]
    return 1 / (1 + np.exp(-y))

  log_decay = -8 * np.logaddexp(0, np.asarray(params["a_param"], np.float64))
  a = np.exp(gates("gate_a") * log_decay)
  state, inputs = (
    np.asarray(params[initial_state.NAME]["state"], np.float64),
    np.asarray(x, np.float64),
  )
  if kind is CGLRU:
    parts = inputs.reshape(2, LENGTH, 2, 2, -1)  # block, part, number
    inputs = (parts[..., 0, :] + 1j * parts[..., 1, :]).reshape(2, LENGTH, -1)
    turn = gates("gate_a") * np.asarray(params["phase_param"], np.float64)
    a, state = a * np.exp(1j * turn), state[0] + 1j * state[1]
  inputs = gates("gate_x") * inputs
  expected, before = np.zeros_like(inputs), np.zeros_like(inputs[:, 0])
  starts = np.asarray(segments.starts)
  for t in range(LENGTH):
    start = starts[:, t, None]
    scale = np.where(start, 1, np.sqrt(1 - np.abs(a[:, t]) ** 2))
    before = a[:, t] * np.where(start, state, before) + scale * inputs[:, t]
    expected[:, t] = before
  if kind is CGLRU:
    both = expected.reshape(2, LENGTH, 2, -1)
    last_expected = np.concatenate([expected[:, -1].real, expected[:, -1].imag], axis=-1)
    expected = np.stack([both.real, both.imag], axis=3).reshape(2, LENGTH, -1)
  else:
    last_expected = expected[:, -1]
  np.testing.assert_allclose(h, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(last, last_expected, rtol=1e-5, atol=1e-5)


def test_a_model_begins_as_without_learned_states():
  """The state is zero at first, and no other parameter depends on it."""
  models = [build("griffin", depth=3, learned_states=learned) for learned in (False, True)]
  tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 12))
  plain, learned = (initialize(model) for model in models)
  paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(learned)]
  added = [path for path in paths if initial_state.NAME in path]
  assert len(added) == 2  # of the scanned recurrent block, and of the remaining one
  assert len(paths) == len(jax.tree.leaves(plain)) + len(added)
  expected, found = (
    model.apply({"params": params}, tokens)[0]
    for model, params in zip(models, (plain, learned), strict=True)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_adapters_are_trained_with_learned_states():
  model = adapted(build("hawk", depth=1, learned_states=True), rank=2)
  assert model.trains("stack/remainder/block_0/mixer/rg_lru/initial_state/state")
  assert not model.trains("stack/remainder/block_0/mixer/rg_lru/a_param")


def test_what_cannot_be_learned_is_refused():
  backbone = Backbone(vocab_size=8, width=16, depth=2, learned_states=True)
  with pytest.raises(ValueError, match=r"no initial state .*SelfAttention, whose state grows"):
    initialize(transformer(backbone, heads=2))
  with pytest.raises(ValueError, match="no mixer of this model has a state that can be learned"):
    initialize(transformer(backbone, heads=2, window=4))
  with pytest.raises(ValueError, match=r"MinGRU cannot learn its initial state: it has no field"):
    initialize(backbone.model((MinGRU,)))
  block = functools.partial(RecurrentBlock, rnn_width=16, gate_blocks=2, recurrence=OtherLRU)
  with pytest.raises(ValueError, match=r"OtherLRU cannot learn its initial state"):
    initialize(backbone.model((block,)))
  with pytest.raises(ValueError, match=r"an option of the model: add gin/train/learned_state.gin"):
    StepOptions(initial_state="learned")
  model = hawk(backbone, rnn_width=16, gate_blocks=2)
  for own_code in (False, True):
    with pytest.raises(ValueError, match="learned initial states have no place in Hugging Face's"):
      adapters.of_model(model, own_code=own_code)


def test_hybrids_learn_the_states_of_their_recurrences():
  backbone = Backbone(vocab_size=8, width=16, depth=2, learned_states=True)
  mixers = {
    "attention": lambda: transformer(backbone, heads=2, window=4),
    # With global attention, which the hybrid leaves out.
    "kimi_delta": lambda: kimi_linear(backbone, heads=2),
  }
  model = hybrid(backbone, mixers=mixers, pattern=("kimi_delta", "attention"))
  initialize(model)
  delta, attention = model.mixers()
  assert delta.learned_state
  assert isinstance(attention, SelfAttention)


class MinGRU(nn.Module):
  """A mixer of constant state without learned states."""

  constant_state = True


class OtherLRU(nn.Module):
  """A recurrence without learned states."""

  blocks: int
