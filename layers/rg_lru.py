"""The real-gated linear recurrent unit."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.matmul import block_diagonal_linear
from kernels.rg_lru import rg_lru
from kernels.rg_lru.gates import gated
from layers import initial_state
from layers.dtypes import FLOAT32, dtypes_of
from layers.linear import scaled_normal
from layers.linear_recurrence import linear_recurrence
from layers.parameter import parameter
from layers.segments import Segments
from parallel import sequence, shards

DECAY_EXPONENT = 8.0  # c of equation 4; the paper fixes it.


class RGLRU(nn.Module):
  """`h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t)`, equations 1 to 4 of the Griffin paper.

  The gates' weights are block-diagonal, so that a shard that holds whole blocks needs no
  communication (section 4.1).

  Attributes:
    blocks: number of diagonal blocks of each gate's weight; divides the width R.
    learned_state: whether documents begin with a learned state. Times a_1, it joins what the
      first token writes; the gates then run outside of the recurrence's kernel.
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
      h0: [B, R] float32 state before the first token; zeros if None.

    Returns:
      h: [B, T, R], and the state after the last token, [B, R] float32; None where time is split and
      h0 is None.
    """
    width = x.shape[-1]
    dtypes = dtypes_of(self)
    # softplus of this parameter is -log sigmoid(Lambda): RecurrentGemma's sign. Always float32:
    # bfloat16 would round a^c = 0.999 and 0.995 to the same decay.
    a_param = parameter(self, "a_param", uniform_decay(0.9, 0.999), ("rnn",), (width,), **FLOAT32)
    log_decay = -DECAY_EXPONENT * jax.nn.softplus(a_param)
    gate_a = BlockDiagonal(self.blocks, name="gate_a", **dtypes)(x)
    gate_x = BlockDiagonal(self.blocks, name="gate_x", **dtypes)(x)
    arrays = x, gate_a, gate_x, log_decay
    if self.learned_state:
      state = initial_state.learned(("rnn",), (width,))
      inputs, log_a = _begun(*arrays, state, segments.starts)
      h, last = linear_recurrence(inputs, log_a, segments, h0, implementation=self.implementation)
      return h.astype(x.dtype), last
    run = functools.partial(rg_lru, implementation=self.implementation)
    return sequence.recur(run, _log_of_product, arrays, segments.starts, h0)

  def matmul_flops(self, rnn_width: int) -> int:
    """Floating-point operations of the two gates' products per token, forward."""
    return 2 * 2 * rnn_width * rnn_width // self.blocks


@functools.partial(jax.checkpoint, prevent_cse=False)
def _begun(x, gate_a, gate_x, log_decay, state, reset):
  """The recurrence's float32 inputs, with what each document begins with, and log a_t.

  The backward pass keeps the arguments alone.
  """
  _, inputs = gated(x, gate_a, gate_x, log_decay, reset)
  log_a = jax.nn.sigmoid(gate_a.astype(log_decay.dtype)) * log_decay
  return inputs + jnp.where(reset[..., None], jnp.exp(log_a) * state, 0), log_a


def _log_of_product(x, gate_a, gate_x, log_decay):
  """The logarithm of the product of all a_t: [B, R] float32 (equation 3)."""
  del x, gate_x
  return log_decay * jnp.sum(jax.nn.sigmoid(gate_a.astype(jnp.float32)), axis=1)


class BlockDiagonal(nn.Module):
  """A linear map, with bias, whose weight is block-diagonal.

  Attributes:
    blocks: number N of diagonal blocks.
    reduction: input channels per output channel.
  """

  blocks: int
  reduction: int = 1
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, T, R] to [B, T, R / reduction]."""
    width, blocks = x.shape[-1], shards.local(self.blocks, "rnn_blocks")
    if width % blocks:
      raise ValueError(
        f"{blocks} gate blocks do not divide the RNN width {width}. "
        "Choose a number of blocks that divides it."
      )
    size, outputs = width // blocks, width // self.reduction
    kernel = parameter(
      self,
      "kernel",
      scaled_normal(1.0, batch_axis=(0,)),
      ("rnn_blocks", "block_in", "block_out"),
      (blocks, size, outputs // blocks),
    )
    bias = parameter(self, "bias", nn.initializers.zeros, ("rnn",), (outputs,))
    return block_diagonal_linear(x.astype(self.dtype), kernel, bias)


def uniform_decay(low: float, high: float) -> nn.initializers.Initializer:
  """Initialises a_param so that `sigmoid(Lambda)^c` is uniform in [low, high] (section 2.4)."""

  def initialize(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    decay = jax.random.uniform(key, shape, jnp.float32, low, high)
    # softplus(a_param) = -log(decay) / c, inverted.
    return jnp.log(jnp.expm1(-jnp.log(decay) / DECAY_EXPONENT)).astype(dtype)

  return initialize
