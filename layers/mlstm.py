"""The mixer of xLSTM 7B: mLSTM (Beck et al. 2024, arXiv 2405.04517; 2025, arXiv 2503.13427)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.gated_linear_attention import gated_linear_attention, log_of_product, matmul_flops
from kernels.gated_linear_attention import mlstm as kernel
from layers import initial_state
from layers.dtypes import FLOAT32, Dtypes, dtypes_of
from layers.linear import Linear
from layers.norm import GatedHeadLayerNorm
from layers.parameter import parameter
from layers.segments import Segments
from layers.whole_heads import check_split
from parallel import sequence


class MLSTMState(NamedTuple):
  """The heads' states in units of exp(m): the matrix C beside the normalizer n, and m."""

  h: jax.Array | None  # [B, H, K, V + 1] float32; None in a training step
  m: jax.Array  # [B, H] float32


class MLSTM(nn.Module):
  """Heads of mLSTM with a layer norm per head and an output gate.

  `out(sigmoid(o(x)) * norm(y))`, with the logarithm of the input gate `cap(i(x))`, that of the
  forget gate `log_sigmoid(cap(f(x)))`, and `cap(z) = c tanh(z / c)` (section 3 of Beck et al.
  2025).

  Attributes:
    heads, key_dim, value_dim: H, K and V.
    gate_cap: bound c on the pre-activations of input and forget gates.
    chunk: tokens that are multiplied as one matrix.
    epsilon: of the norm.
    output_scale: initialisation scale of the output map.
    learned_state: whether documents begin with a state C beside n that is learned.
    implementation: a name of `kernels.gated_linear_attention.IMPLEMENTATIONS`; None picks by
      backend.
  """

  heads: int
  key_dim: int
  value_dim: int
  gate_cap: float = 15.0
  chunk: int = 64
  epsilon: float = 1e-6
  output_scale: float = 1.0
  learned_state: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  implementation: str | None = None

  constant_state = True
  input_axis = "heads"

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segments: Segments,
    state: MLSTMState | None = None,
    capacity: int | None = None,
  ) -> tuple[jax.Array, MLSTMState | None]:
    """Mixes [B, T, D] over time; see `layers.mixer` for the contract of a mixer."""
    check_split(self.heads, "mLSTM")
    dtypes, axes = dtypes_of(self), ("embed", "heads")

    def heads(name, channels):
      y = Linear(self.heads * channels, axes, name=name, **dtypes)(x)
      return y.reshape(*y.shape[:2], -1, channels)

    q = heads("q", self.key_dim) * self.key_dim**-0.5
    k, v = heads("k", self.key_dim), heads("v", self.value_dim)
    gate = Linear(self.heads * self.value_dim, axes, name="o", **dtypes)(x)
    log_i = self._gate(x, "i", nn.initializers.constant(-10.0))
    log_f = jax.nn.log_sigmoid(self._gate(x, "f", _forget_biases))
    last = state is not None or capacity is not None
    y, after = self._recur(q, k, v, log_f, log_i, segments, state, last)
    y = GatedHeadLayerNorm(epsilon=self.epsilon, name="norm", **dtypes)(y, gate)
    out = Linear(x.shape[-1], ("heads", "embed"), self.output_scale, name="out", **dtypes)
    return out(y), after

  def _gate(self, x: jax.Array, name: str, bias) -> jax.Array:
    """The capped pre-activation of a gate, [B, T, H] float32.

    In float32 also where activations are bfloat16: an exponential makes an error of 2^-9 of 10 one
    of two per cent.
    """
    dtype: Dtypes = {"dtype": FLOAT32["dtype"], "param_dtype": self.param_dtype}
    z = Linear(self.heads, ("embed", "heads"), 0.0, name=name, **dtype)(x)
    z += parameter(self, f"{name}_bias", bias, ("heads",), z.shape[-1:], **FLOAT32)
    cap = float(self.gate_cap)  # JAX takes a whole number of more than 32 bits for no float.
    return cap * jnp.tanh(z / cap)

  def _recur(self, q, k, v, log_f, log_i, segments, state, last):
    h0, m0 = state if state is not None else (None, None)
    reset, largest = segments.starts, log_i
    if self.learned_state:
      # What a learned state leaves after the first token has the exponent log_f.
      largest = jnp.where(reset[..., None], jnp.maximum(log_i, log_f), log_i)
    decay, value = kernel.maxima(log_f, largest, reset)
    m0 = sequence.largest_before(decay[:, -1], value[:, -1], m0)
    m = jnp.maximum(decay + m0[:, None], value)
    arrays = kernel.stabilized(q, k, v, log_f, log_i, m, m0, reset)
    options = {"chunk": self.chunk, "implementation": self.implementation}
    # Shards of time need the last state, a training step otherwise does not.
    run = functools.partial(gated_linear_attention, last=last or sequence.is_split(), **options)
    y, h = sequence.recur(run, log_of_product, arrays, reset, h0)
    if self.learned_state:
      shape = y.shape[2], self.key_dim, self.value_dim + 1
      first = initial_state.learned(("heads", "state", "state"), shape)
      # In units of exp(m), as the kernel's decays are.
      scale = jnp.exp(jnp.where(reset[..., None], log_f - m, 0))
      left = initial_state.left_of_start(arrays[-1], segments, scale)
      y = initial_state.joined(y, left, q, first)
      h = initial_state.with_rest(h, left, first)
    m_last = m[:, -1] if state is None else sequence.of_last(m[:, -1])
    return kernel.normalized(y, m), MLSTMState(h, m_last)

  def initial_state(self, batch_size: int, capacity: int) -> MLSTMState:
    """The state before the first token; `capacity` does not matter here."""
    del capacity
    h = batch_size, self.heads, self.key_dim, self.value_dim + 1
    return MLSTMState(jnp.zeros(h, jnp.float32), jnp.zeros(h[:2], jnp.float32))

  def matmul_flops(self, width: int, length: int) -> float:
    """Floating-point operations of the matrix products per token of a row, forward."""
    maps = 2 * width * self.heads * (2 * self.key_dim + 3 * self.value_dim + 2)
    if self.learned_state:
      maps += 2 * self.heads * self.key_dim * (self.value_dim + 1)
    return maps + matmul_flops(
      heads=self.heads,
      key_dim=self.key_dim,
      value_dim=self.value_dim + 1,
      chunk=self.chunk,
      length=length,
    )


def _forget_biases(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
  """From 3 for the first head to 6 for the last, as in xLSTM 7B's code."""
  del key
  return jnp.linspace(3.0, 6.0, shape[0], dtype=dtype)
