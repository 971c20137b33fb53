"""Mixers with the delta rule: Gated DeltaNet and Kimi Delta Attention."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.delta_rule import delta_rule, matmul_flops, state_map
from layers import initial_state
from layers.conv1d import CausalConv1D
from layers.decay_rates import log_rate, step_bias
from layers.dtypes import FLOAT32, Dtypes, dtypes_of
from layers.linear import Linear
from layers.norm import GatedHeadNorm, unit_norm
from layers.parameter import parameter
from layers.segments import Segments
from layers.whole_heads import check_split
from parallel import sequence, shards


def output_epsilon(key_dim: int) -> float:
  """The output norm's epsilon that conditions heads of any size as 1e-5 does those of 128 channels.

  A query and a key of norm 1 give a row's first token `y = beta (q^T k) v / sqrt(K)`, of size 1 / K
  times that of v. Where q^T k is near 0, the norm divides by almost nothing: without epsilon its
  result is v times the sign of q^T k, a jump. The papers' code has 1e-5 for 128 and 256 channels.
  """
  return 1e-5 * max(1.0, 128 / key_dim) ** 2


def key_dim_of(width: int, heads: int, head_dim: int | None) -> int:
  """K: `head_dim`, or width / heads; raises ValueError where the heads do not divide the width."""
  if head_dim is None and width % heads:
    raise ValueError(
      f"heads={heads} does not divide width={width}: choose a number of heads that does, or set "
      "head_dim."
    )
  return head_dim or width // heads


def power_of_two(chunk: int) -> int:
  """The chunk as it is; raises ValueError unless it is a power of two."""
  if chunk & (chunk - 1):
    raise ValueError(f"chunk={chunk} is no power of two: choose one, such as 64.")
  return chunk


class DeltaNetState(NamedTuple):
  """The convolution's last inputs, oldest first, and the heads' states."""

  history: jax.Array  # [B, conv_width - 1, H (K + J (K + V))] float32
  h: jax.Array | None  # [B, H, K, V] float32; None in a training step


class GatedDeltaNet(nn.Module):
  """Heads of the delta rule between a short convolution and a gated norm.

  Queries, keys and values come from one map, a convolution and SiLU; queries and keys have norm 1.
  `beta = sigmoid(b(x))`, `log a = -A softplus(a(x) + bias)` per head, and the result is
  `out(norm(y) * silu(z))`, with a norm per head (section 3.4 of Yang et al. 2024, arXiv
  2412.06464).

  Attributes:
    heads: H.
    key_dim, value_dim: K and V, channels of a head.
    conv_width: tokens that one output of the convolution sees.
    corrections: J, corrections of the state per token (DeltaProduct, arXiv 2502.10297).
    decays: whether the state decays; without, this is DeltaNet (arXiv 2406.06484) with gates.
    negative_eigenvalues: beta in [0, 2] instead of [0, 1]: a correction may reflect (Grazzi et al.
      2024, arXiv 2411.12537).
    chunk: tokens that are multiplied as one matrix.
    norm_epsilon: added to the mean square of a head's result.
    output_scale: initialisation scale of the output map.
    learned_state: whether documents begin with a state h that is learned; the convolution begins
      with nothing.
    implementation: a name of `kernels.delta_rule.IMPLEMENTATIONS`; None picks by backend.
  """

  heads: int
  key_dim: int
  value_dim: int
  conv_width: int = 4
  corrections: int = 1
  decays: bool = True
  negative_eigenvalues: bool = False
  chunk: int = 64
  norm_epsilon: float = 1e-5
  output_scale: float = 1.0
  learned_state: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  implementation: str | None = None

  constant_state = True
  activation = staticmethod(jax.nn.silu)  # of the output gate
  decay_per_channel = False

  @property
  def input_axis(self) -> str | None:
    """The heads, unless `_inputs` copies x to their shards itself."""
    return "heads"

  @property
  def _channels(self) -> int:
    """Channels of a head's query, keys and values."""
    return self.key_dim + self.corrections * (self.key_dim + self.value_dim)

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segments: Segments,
    state: DeltaNetState | None = None,
    capacity: int | None = None,
  ) -> tuple[jax.Array, DeltaNetState | None]:
    """Mixes [B, T, D] over time; see `layers.mixer` for the contract of a mixer."""
    check_split(self.heads, "the delta rule")
    dtypes = dtypes_of(self)
    history, h0 = state if state is not None else (None, None)
    x, log_a, gate = self._inputs(x)
    # From the map to the kernel in float32, rounded once: where a query is nearly orthogonal to the
    # keys, the output norm makes each rounding of either as large as the output.
    types: Dtypes = {"dtype": FLOAT32["dtype"], "param_dtype": self.param_dtype}
    conv = CausalConv1D(self.conv_width, "heads", use_bias=False, name="conv1d", **types)
    qkv = self._linear("qkv", self.heads * self._channels)(x)
    qkv, history = conv(qkv, segments.positions, history)
    beta = jax.nn.sigmoid(self._linear("b", self.heads * self.corrections)(x).astype(jnp.float32))
    if self.negative_eigenvalues:
      beta = 2 * beta
    last = state is not None or capacity is not None
    y, h = self._recur(jax.nn.silu(qkv), beta, log_a, segments, h0, last)
    norm = GatedHeadNorm(self.activation, epsilon=self.norm_epsilon, name="norm", **dtypes)
    y = norm(y, gate.reshape(y.shape))
    out = Linear(x.shape[-1], ("heads", "embed"), self.output_scale, name="out", **dtypes)
    return out(y.reshape(*y.shape[:2], -1)), DeltaNetState(history, h)

  def _inputs(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """x for the maps to heads, the logarithms of the decays, and the output gate [B, T, H V]."""
    gate = self._linear("z", self.heads * self.value_dim)(x)
    if not self.decays:
      return x, None, gate
    return x, self._log_decay(self._linear("a", self.heads)(x)), gate

  def _linear(self, name: str, features: int, axes: tuple[str, str] = ("embed", "heads")) -> Linear:
    return Linear(features, axes, name=name, **dtypes_of(self))

  def _log_decay(self, step: jax.Array) -> jax.Array:
    """`-A softplus(step + bias)` of [B, T, H] or [B, T, H K], which becomes [B, T, H, K]."""
    bias = parameter(self, "dt_bias", step_bias, ("heads",), step.shape[-1:], **FLOAT32)
    heads = (shards.local(self.heads, "heads"),)
    rate = jnp.exp(parameter(self, "a_log", log_rate, ("heads",), heads, **FLOAT32))
    step = jax.nn.softplus(step.astype(jnp.float32) + bias)
    if step.shape[-1] == heads[0]:
      return -rate * step
    return -rate[:, None] * step.reshape(*step.shape[:2], *heads, -1)

  def _recur(self, qkv, beta, log_a, segments, h0, last) -> tuple[jax.Array, jax.Array | None]:
    """y [B, T, H, V] and the last state, from qkv [B, T, H (K + J (K + V))]."""
    batch, length, _ = qkv.shape
    qkv = qkv.reshape(batch, length, -1, self._channels)
    keys = self.key_dim + self.corrections * self.key_dim

    def rows(x):
      """[B, T, H, J ...] as [B, J T, H, ...]."""
      x = x.reshape(*x.shape[:3], self.corrections, -1)
      return jnp.moveaxis(x, 3, 2).reshape(batch, -1, x.shape[2], x.shape[4])

    q = unit_norm(qkv[..., : self.key_dim]) * self.key_dim**-0.5
    k, v = unit_norm(rows(qkv[..., self.key_dim : keys])), rows(qkv[..., keys:])
    beta = rows(beta.reshape(*qkv.shape[:3], -1))[..., 0]
    options = {"chunk": self.chunk, "implementation": self.implementation}
    # Shards of time need the last state, a training step otherwise does not.
    run = functools.partial(delta_rule, last=last or sequence.is_split(), **options)
    find = functools.partial(state_map, **options)
    first = left = None
    if self.learned_state:
      shape = q.shape[2], self.key_dim, self.value_dim
      first = initial_state.learned(("heads", "state", "state"), shape)
      decay = jnp.zeros(q.shape[:3], beta.dtype) if log_a is None else log_a
      left = initial_state.left_of_start(decay, segments)
      v = v - initial_state.read(jnp.repeat(left, self.corrections, axis=1), k, first)
    arrays: Any = *(x.astype(self.dtype) for x in (q, k, v)), beta, log_a
    y, h = sequence.recur_by_matrices(run, find, arrays, segments.starts, h0)
    if first is None or left is None:
      return y, h
    return initial_state.joined(y, left, arrays[0], first), initial_state.with_rest(h, left, first)

  def initial_state(self, batch_size: int, capacity: int) -> DeltaNetState:
    """The state before the first token; `capacity` does not matter here."""
    del capacity
    history = batch_size, self.conv_width - 1, self.heads * self._channels
    h = batch_size, self.heads, self.key_dim, self.value_dim
    return DeltaNetState(jnp.zeros(history, jnp.float32), jnp.zeros(h, jnp.float32))

  def matmul_flops(self, width: int, length: int) -> float:
    """Floating-point operations of the matrix products per token of a row, forward."""
    maps = self._channels + 2 * self.value_dim + self.corrections
    sizes = {name: getattr(self, name) for name in ("heads", "key_dim", "value_dim", "corrections")}
    recurrence = matmul_flops(
      **sizes, chunk=self.chunk, length=length, decay_per_channel=self.decay_per_channel
    )
    if self.learned_state:
      recurrence += 2 * (1 + self.corrections) * self.heads * self.key_dim * self.value_dim
    return 2 * width * self.heads * maps + self._gate_flops(width) + recurrence

  def _gate_flops(self, width: int) -> int:
    """Operations of the decay's map."""
    return 2 * width * self.heads if self.decays else 0


class KimiDeltaAttention(GatedDeltaNet):
  """Gated DeltaNet with a decay per channel of the keys (Kimi Team 2025, arXiv 2510.26692).

  The maps to the decays and to the output gate have rank `rank`, and the gate is a sigmoid.

  Attributes:
    rank: channels between the two matrices of such a map; V in the paper.
  """

  rank: int = 128

  activation = staticmethod(jax.nn.sigmoid)
  decay_per_channel = True

  @property
  def input_axis(self) -> str | None:
    """x is copied together with the inner channels of the two maps."""
    return None

  def _inputs(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    # Every shard computes the same inner channels: their gradients join that of x.
    inner = (self._linear(name, self.rank, ("embed", "lora"))(x) for name in ("a_in", "z_in"))
    x, a, z = shards.copy_together_to_tensor_parallel((x, *inner), "heads")
    outer = ("lora", "heads")
    step = self._linear("a_out", self.heads * self.key_dim, outer)(a)
    return x, self._log_decay(step), self._linear("z_out", self.heads * self.value_dim, outer)(z)

  def _gate_flops(self, width: int) -> int:
    """Operations of the decay's map, and what the gate's costs beyond one of full rank."""
    channels = self.key_dim + self.value_dim
    full = 2 * width * self.heads * self.value_dim
    return 2 * self.rank * (2 * width + self.heads * channels) - full
