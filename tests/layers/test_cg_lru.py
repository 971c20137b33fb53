"""The complex-gated unit against its equations, and against RecurrentGemma's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recurrentgemma.jax.layers import RGLRU as TheirUnit

from layers.cg_lru import CGLRU
from layers.segments import Segments, positions_in_segments
from tests.kernels import float64_reference

BATCH, LENGTH, WIDTH = 2, 21, 16


def case(blocks):
  """A unit, its parameters, x and the segments of two packed rows."""
  x = jax.random.normal(jax.random.key(0), (BATCH, LENGTH, WIDTH))
  tokens = jnp.arange(LENGTH)
  ids = jnp.stack([jnp.ones_like(tokens), 1 + tokens // 8])
  segments = Segments(ids, positions_in_segments(ids))
  unit = CGLRU(blocks)
  params = nn.unbox(unit.init(jax.random.key(1), x, segments))["params"]
  params["gate_a"]["bias"] += 0.3
  params["gate_x"]["bias"] -= 0.2
  return unit, params, x, segments


def test_it_equals_recurrentgemma_s_complex_unit():
  unit, params, x, segments = case(blocks=1)
  theirs = TheirUnit(width=WIDTH, num_heads=1, only_real=False)
  gates = {
    name: {"w": params[gate]["kernel"], "b": params[gate]["bias"][None]}
    for name, gate in (("a_gate", "gate_a"), ("input_gate", "gate_x"))
  }
  decay = {"a_param": params["a_param"], "a_imag_param": params["phase_param"]}
  expected, expected_last = theirs.apply({"params": gates | decay}, x, segments.positions)
  h, h_last = unit.apply({"params": params}, x, segments)
  np.testing.assert_allclose(h, expected, atol=2e-6)
  np.testing.assert_allclose(h_last, expected_last, atol=2e-6)


def test_it_equals_the_equations_of_appendix_b_in_complex128():
  """With the halves of each gate block as real and imaginary parts."""
  blocks, number = 2, WIDTH // 4
  unit, params, x, segments = case(blocks)
  exact = jax.tree.map(float64_reference.wide, params)
  sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
  cut = float64_reference.wide(x).reshape(BATCH, LENGTH, blocks, 2 * number)

  def gate(name):
    product = np.einsum("btni,nio->btno", cut, exact[name]["kernel"])
    return sigmoid(product + exact[name]["bias"].reshape(blocks, number))

  complex_x = cut[..., :number] + 1j * cut[..., number:]
  decay = np.log(sigmoid(-exact["a_param"])) + 1j * exact["phase_param"] / 8
  a = np.exp(8 * gate("gate_a") * decay.reshape(blocks, number))
  scale = np.sqrt(1 - np.abs(a) ** 2)
  first = np.asarray(segments.starts)[..., None, None]
  a, scale = np.where(first, 0, a), np.where(first, 1, scale)
  state, expected = 0, []
  for t in range(LENGTH):
    state = a[:, t] * state + (scale * gate("gate_x") * complex_x)[:, t]
    expected.append(np.concatenate([state.real, state.imag], axis=-1))
  h, _ = unit.apply({"params": params}, x, segments)
  np.testing.assert_allclose(h, np.stack(expected, 1).reshape(h.shape), atol=2e-6)


def test_decays_start_in_the_ring_and_the_sector_that_are_documented():
  _, params, *_ = case(blocks=1)
  decay = np.exp(-8 * jax.nn.softplus(params["a_param"]))
  assert (decay >= 0.9 - 1e-6).all() and (decay <= 0.999 + 1e-6).all()  # noqa: PT018
  assert (params["phase_param"] >= 0).all()
  assert (params["phase_param"] <= np.pi / 10).all()


def test_blocks_that_cannot_hold_both_parts_are_refused():
  zeros = jnp.zeros((1, 2), jnp.int32)
  with pytest.raises(ValueError, match="12 channels in 4 gate blocks cannot hold real and imag"):
    CGLRU(4).init(jax.random.key(0), jnp.zeros((1, 2, 12)), Segments(zeros, zeros))
