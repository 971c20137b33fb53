"""The mixer of Mamba-2 (section 7 of Dao and Gu 2024)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.gated_linear_attention import (
  gated_linear_attention,
  log_of_product,
  matmul_flops,
)
from layers import initial_state
from layers.conv1d import CausalConv1D
from layers.decay_rates import log_rate, step_bias
from layers.dtypes import FLOAT32, dtypes_of
from layers.linear import Linear
from layers.norm import GatedRMSNorm
from layers.parameter import parameter
from layers.segments import Segments
from parallel import sequence, shards
from parallel.mesh import FLAGS


class Mamba2State(NamedTuple):
  """The convolutions' last inputs, oldest first, and the heads' states."""

  x_history: jax.Array  # [B, conv_width - 1, H P]
  bc_history: jax.Array  # [B, conv_width - 1, 2 G N]
  h: jax.Array | None  # [B, H, N, P] float32; None in a training step


class Mamba2Mixer(nn.Module):
  """Heads of state-space duality between a short convolution and a gated norm.

  `dt = softplus(dt(x) + bias)` per head, `h_t = exp(-A dt) h_{t-1} + dt b_t x_t^T`,
  `y_t = h_t^T c_t + D x_t`, then `out(norm(y * silu(z)))`. b and c serve a group of heads, as
  key/value heads do in attention, and lie on devices as those.

  Attributes:
    heads, head_dim: H and P; their product is the mixer's width.
    state_size: N.
    groups: G, groups of heads that share b, c and a root mean square.
    conv_width: tokens that one output of the convolution sees.
    use_bias: biases on the linear maps.
    epsilon: of the gated norm.
    chunk: steps that are multiplied as one matrix.
    output_scale: initialisation scale of the output map.
    learned_state: whether documents begin with a state h that is learned; the convolutions begin
      with nothing.
    implementation: a name of `kernels.gated_linear_attention.IMPLEMENTATIONS`; None picks by
      backend.
  """

  heads: int
  head_dim: int
  state_size: int
  groups: int = 1
  conv_width: int = 4
  use_bias: bool = False
  epsilon: float = 1e-6
  chunk: int = 128
  output_scale: float = 1.0
  learned_state: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  implementation: str | None = None

  constant_state = True

  @property
  def input_axis(self) -> str | None:
    """With one group, x is copied together with b and c."""
    return None if self.groups == 1 else "heads"

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segments: Segments,
    state: Mamba2State | None = None,
    capacity: int | None = None,
  ) -> tuple[jax.Array, Mamba2State | None]:
    """Mixes [B, T, D] over time; see `layers.mixer` for the contract of a mixer."""
    if self.groups > 1 and self.groups % shards.count("heads"):
      raise ValueError(
        f"{self.groups} groups of Mamba-2's heads cannot be split over {shards.count('heads')} "
        "devices. "
        f"Set {FLAGS['model']} to a divisor of {self.groups}, or make groups 1 or a multiple of "
        f"{shards.count('heads')}."
      )
    dtypes = dtypes_of(self)
    x_history, bc_history, h0 = state if state is not None else (None, None, None)

    def project(x, name, features, axis="heads"):
      return Linear(features, ("embed", axis), use_bias=self.use_bias, name=name, **dtypes)(x)

    def convolved(x, name, features, history, axis="heads"):
      conv = CausalConv1D(self.conv_width, axis, name=f"conv1d_{name}", **dtypes)
      y, history = conv(project(x, name, features, axis), segments.positions, history)
      return jax.nn.silu(y), history

    channels, features = self.heads * self.head_dim, 2 * self.groups * self.state_size
    if self.groups == 1:
      # Every shard computes the same b and c: their gradients join that of x.
      bc, bc_history = convolved(x, "bc", features, bc_history, "kv_heads")
      x, bc = shards.copy_together_to_tensor_parallel((x, bc), "heads")
    else:
      bc, bc_history = convolved(x, "bc", features, bc_history)
    u, x_history = convolved(x, "x", channels, x_history)
    z, dt = project(x, "z", channels), project(x, "dt", self.heads)
    kept = state is not None or capacity is not None
    y, h = self._recur(u, dt, bc, segments, h0, kept)
    y = GatedRMSNorm(channels, "heads", self.groups, self.epsilon, name="norm", **dtypes)(y, z)
    out = Linear(
      x.shape[-1], ("heads", "embed"), self.output_scale, self.use_bias, name="out", **dtypes
    )
    return out(y), Mamba2State(x_history, bc_history, h)

  def _recur(self, u, dt, bc, segments, h0, last) -> tuple[jax.Array, jax.Array | None]:
    """y [B, T, H P] and the last state, from u like y, dt [B, T, H] and bc [B, T, 2 G N]."""
    # Float32 always, as every parameter that makes a decay.
    per_head = {"axes": ("heads",), "shape": dt.shape[-1:]}
    a_log, dt_bias, skip = (
      parameter(self, *each, **per_head, **FLOAT32) for each in _PER_HEAD.items()
    )
    x = u.reshape(*dt.shape, self.head_dim)
    b, c = jnp.moveaxis(bc.reshape(*dt.shape[:2], -1, 2, self.state_size), 3, 0)
    dt = jax.nn.softplus(dt.astype(jnp.float32) + dt_bias)
    arrays = c, b, (x * dt[..., None]).astype(x.dtype), -jnp.exp(a_log) * dt
    # Shards of time need the last state, a training step otherwise does not.
    last = last or sequence.is_split()
    options = {"chunk": self.chunk, "implementation": self.implementation, "last": last}
    run = functools.partial(gated_linear_attention, **options)
    y, h = sequence.recur(run, log_of_product, arrays, segments.starts, h0)
    if self.learned_state:
      shape = dt.shape[-1], self.state_size, self.head_dim
      first = initial_state.learned(("heads", "state", "state"), shape)
      left = initial_state.left_of_start(arrays[-1], segments)
      y = initial_state.joined(y, left, c, first)
      h = initial_state.with_rest(h, left, first)
    return (y + (skip[:, None] * x).astype(x.dtype)).reshape(u.shape), h

  def initial_state(self, batch_size: int, capacity: int) -> Mamba2State:
    """The state before the first token; `capacity` does not matter here."""
    del capacity
    before, bc = (batch_size, self.conv_width - 1), 2 * self.groups * self.state_size
    h = jnp.zeros((batch_size, self.heads, self.state_size, self.head_dim), jnp.float32)
    history = jnp.zeros((*before, self.heads * self.head_dim), self.dtype)
    return Mamba2State(history, jnp.zeros((*before, bc), self.dtype), h)

  def matmul_flops(self, width: int, length: int) -> float:
    """Floating-point operations of the matrix products per token of a row, forward."""
    linear = (3 * self.head_dim + 1) * self.heads + 2 * self.groups * self.state_size
    read = 2 * self.heads * self.state_size * self.head_dim if self.learned_state else 0
    return (
      2 * width * linear
      + read
      + matmul_flops(
        heads=self.heads,
        groups=self.groups,
        key_dim=self.state_size,
        value_dim=self.head_dim,
        chunk=self.chunk,
        length=length,
      )
    )


_PER_HEAD = {"a_log": log_rate, "dt_bias": step_bias, "skip": nn.initializers.ones}
