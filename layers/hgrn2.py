"""The mixer of HGRN2 (Qin et al. 2024, arXiv 2404.07904)."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.gated_linear_attention import gated_linear_attention, log_of_product, matmul_flops
from layers import initial_state
from layers.dtypes import FLOAT32, dtypes_of
from layers.linear import Linear
from layers.mixer import ModuleFactory
from layers.norm import GatedRMSNorm
from layers.parameter import parameter
from layers.segments import Segments
from layers.whole_heads import check_split
from parallel import sequence, shards


class LowerBounds(nn.Module):
  """Lower bounds of forget gates that grow with depth: a learned table [blocks, channels].

  `cumsum(softmax(table)) - softmax(table)_1` over the blocks (equation 3 of HGRN, Qin et al. 2023,
  arXiv 2311.04823): the first block has none, the last one stays below 1.
  """

  blocks: int
  channels: int
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self) -> jax.Array:
    """[blocks, channels of this shard] float32."""
    shape = self.blocks, shards.local(self.channels, "heads")
    table = parameter(
      self, "lower_bounds", nn.initializers.zeros, ("layers", "heads"), shape, **FLOAT32
    )
    share = jax.nn.softmax(table, axis=0)
    return jnp.cumsum(share, axis=0) - share[:1]


class HGRN2(nn.Module):
  """Gated linear attention whose keys are what its forget gates do not keep.

  `f = bound + (1 - bound) sigmoid(f(x))` per channel, `h_t = diag(f_t) h_{t-1} + (1 - f_t) i_t^T`,
  `out(norm(h_t^T silu(q(x))))` with i a linear map of x, and one norm over all channels.

  Attributes:
    heads, key_dim, value_dim: H, K (the expansion of the state) and V.
    chunk: tokens that are multiplied as one matrix.
    epsilon: of the norm.
    output_scale: initialisation scale of the output map.
    learned_state: whether documents begin with a state that is learned.
    implementation: a name of `kernels.gated_linear_attention.IMPLEMENTATIONS`; None picks by
      backend.
  """

  heads: int
  key_dim: int
  value_dim: int
  chunk: int = 64
  epsilon: float = 1e-6
  output_scale: float = 1.0
  learned_state: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  implementation: str | None = None

  constant_state = True
  input_axis = "heads"

  def depth_table(self) -> ModuleFactory:
    """Makes the lower bounds of all blocks of this kind; see `layers.mixer.Mixer`."""
    return functools.partial(LowerBounds, channels=self.heads * self.key_dim)

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segments: Segments,
    state: jax.Array | None = None,
    capacity: int | None = None,
    lower_bound: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Mixes [B, T, D] over time; see `layers.mixer` for the contract of a mixer.

    `lower_bound` is [H K] float32 in [0, 1) of this shard; None is zero. The state is [B, H, K, V]
    float32.
    """
    check_split(self.heads, "HGRN2")
    dtypes = dtypes_of(self)
    keys, values = self.heads * self.key_dim, self.heads * self.value_dim
    axes = ("embed", "heads")
    q = jax.nn.silu(Linear(keys, axes, name="q", **dtypes)(x))
    step = Linear(keys, axes, name="f", **dtypes)(x)
    v = Linear(values, axes, name="i", **dtypes)(x)
    k, log_f = _gates(step, jnp.zeros((), jnp.float32) if lower_bound is None else lower_bound)
    arrays = tuple(
      x.reshape(*x.shape[:2], -1, size)
      for x, size in (
        (q, self.key_dim),
        (k.astype(self.dtype), self.key_dim),
        (v, self.value_dim),
        (log_f, self.key_dim),
      )
    )
    last = state is not None or capacity is not None
    # Shards of time need the last state, a training step otherwise does not.
    options = {"chunk": self.chunk, "implementation": self.implementation}
    run = functools.partial(gated_linear_attention, last=last or sequence.is_split(), **options)
    y, h = sequence.recur(run, log_of_product, arrays, segments.starts, state)
    if self.learned_state:
      shape = y.shape[2], self.key_dim, self.value_dim
      first = initial_state.learned(("heads", "state", "state"), shape)
      left = initial_state.left_of_start(arrays[-1], segments)
      y = initial_state.joined(y, left, arrays[0], first)
      h = initial_state.with_rest(h, left, first)
    norm = GatedRMSNorm(values, "heads", epsilon=self.epsilon, name="norm", **dtypes)
    out = Linear(x.shape[-1], ("heads", "embed"), self.output_scale, name="out", **dtypes)
    return out(norm(y.reshape(v.shape))), h

  def initial_state(self, batch_size: int, capacity: int) -> jax.Array:
    """The state before the first token; `capacity` does not matter here."""
    del capacity
    return jnp.zeros((batch_size, self.heads, self.key_dim, self.value_dim), jnp.float32)

  def matmul_flops(self, width: int, length: int) -> float:
    """Floating-point operations of the matrix products per token of a row, forward."""
    sizes = {name: getattr(self, name) for name in ("heads", "key_dim", "value_dim", "chunk")}
    maps = 2 * width * self.heads * (2 * self.key_dim + 2 * self.value_dim)
    if self.learned_state:
      maps += 2 * self.heads * self.key_dim * self.value_dim
    return maps + matmul_flops(**sizes, length=length, decay_per_channel=True)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _gates(step: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`1 - f` and `log f` in float32, with all digits where f is near 0 and near 1."""
  step = step.astype(jnp.float32)
  forgets = (1 - bound) * jax.nn.sigmoid(-step)
  # The branches meet where the sigmoid is 1/2. The bounds keep the other branch's gradient finite.
  near_one = jnp.log1p(-jnp.minimum(forgets, 0.5))
  keeps = bound + (1 - bound) * jax.nn.sigmoid(step)
  return forgets, jnp.where(step > 0, near_one, jnp.log(jnp.maximum(keeps, 1e-37)))
