"""The complex-gated linear recurrent unit."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.rg_lru.gates import input_scale
from layers import initial_state
from layers.dtypes import FLOAT32, dtypes_of
from layers.linear_recurrence import linear_recurrence
from layers.parameter import parameter
from layers.rg_lru import DECAY_EXPONENT, BlockDiagonal, uniform_decay
from layers.segments import Segments
from parallel import shards


class CGLRU(nn.Module):
  """`h_t = a_t h_{t-1} + sqrt(1 - |a_t|^2) (i_t x_t)` with complex a, x, h: appendix B of the
  Griffin paper.

  `a_t = a^(c r_t)` and `a = sigmoid(Lambda) e^(i theta)`. Half of the R channels are real parts and
  half imaginary parts, of the input as of the output; gates and decays have R / 2 channels. The
  paper's halves are those of the channels of each gate block here: another order of the channels,
  in which a shard that holds whole blocks has both parts of its numbers.

  Attributes:
    blocks: number of diagonal blocks of each gate's weight; R is a multiple of twice that.
    learned_state: whether documents begin with a state that is learned.
    implementation: a recurrence kernel's name; None picks by backend.
  """

  blocks: int
  learned_state: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  implementation: str | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, segments: Segments, h0: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array | None]:
    """Runs the recurrence.

    Args:
      x: [B, T, R].
      segments: boundaries of the T tokens.
      h0: [B, R] float32 state before the first token, real parts first; zeros if None.

    Returns:
      h: [B, T, R], and the state after the last token, [B, R] float32; None where time is split.
    """
    width, blocks = x.shape[-1], shards.local(self.blocks, "rnn_blocks")
    if width % (2 * blocks):
      raise ValueError(
        f"{width} channels in {blocks} gate blocks cannot hold real and imaginary parts. "
        "Make rnn_width a multiple of twice gate_blocks."
      )
    # Both float32 whatever the other parameters are, as the real unit's decay.
    per_number = {"axes": ("rnn",), "shape": (width // 2,)}
    a_param = parameter(self, "a_param", uniform_decay(0.9, 0.999), **per_number, **FLOAT32)
    # c theta, as RecurrentGemma stores it: theta itself would turn c times as far in a step of
    # Adam.
    phase_param = parameter(self, "phase_param", _uniform_phase, **per_number, **FLOAT32)
    dtypes = dtypes_of(self)
    gate_a = BlockDiagonal(self.blocks, reduction=2, name="gate_a", **dtypes)(x)
    gate_x = BlockDiagonal(self.blocks, reduction=2, name="gate_x", **dtypes)(x)
    decay = -DECAY_EXPONENT * jax.nn.softplus(a_param), phase_param
    starts, state = segments.starts[..., None], None
    if self.learned_state:
      # Real and imaginary parts; a shard has both of its numbers.
      state = initial_state.learned(("state", "rnn"), (2, width // 2))
    inputs, log_a, phase = _gated(_parts_first(x, blocks), gate_a, gate_x, *decay, starts, state)
    h, h_last = linear_recurrence(
      inputs, log_a, segments, h0, phase=phase, implementation=self.implementation
    )
    return _blocks_first(h, blocks).astype(x.dtype), h_last

  def matmul_flops(self, rnn_width: int) -> int:
    """Floating-point operations of the two gates' products per token, forward."""
    return 2 * rnn_width * rnn_width // self.blocks


@functools.partial(jax.checkpoint, prevent_cse=False)
def _gated(x, gate_a, gate_x, log_decay, turn, reset, state):
  """The scaled input, log |a_t| and the phase of a_t.

  A state, [2, R / 2], joins the input where a document begins, times a_t; the input is then
  float32. The backward pass keeps the arguments alone.
  """
  wide = log_decay.dtype
  r = jax.nn.sigmoid(gate_a.astype(wide))
  log_a = r * log_decay
  gain = jnp.where(reset, 1, input_scale(log_a)) * jax.nn.sigmoid(gate_x.astype(wide))
  inputs, phase = jnp.concatenate([gain, gain], axis=-1) * x, r * turn
  if state is None:
    return inputs.astype(x.dtype), log_a, phase
  (real, imaginary), (cos, sin) = state, (jnp.cos(phase), jnp.sin(phase))
  turned = [cos * real - sin * imaginary, sin * real + cos * imaginary]
  begun = jnp.concatenate([jnp.exp(log_a) * part for part in turned], axis=-1)
  return inputs + jnp.where(reset, begun, 0), log_a, phase


def _parts_first(x: jax.Array, blocks: int) -> jax.Array:
  """Brings [B, T, R] from (block, part, number) to (part, block, number)."""
  cut = x.reshape(*x.shape[:-1], blocks, 2, -1)
  return cut.swapaxes(-2, -3).reshape(x.shape)


def _blocks_first(x: jax.Array, blocks: int) -> jax.Array:
  """The inverse of `_parts_first`."""
  cut = x.reshape(*x.shape[:-1], 2, blocks, -1)
  return cut.swapaxes(-2, -3).reshape(x.shape)


def _uniform_phase(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
  """c theta uniform in [0, pi / 10], as in RecurrentGemma's code; the paper does not say."""
  return jax.random.uniform(key, shape, dtype, 0.0, math.pi / 10)
