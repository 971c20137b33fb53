"""Causal self-attention with shared key/value heads, global or within a window."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.attention import attention
from layers.dtypes import dtypes_of
from layers.linear import Linear
from layers.rotary import RotaryScaling, rotate
from layers.segments import Segments
from parallel import sequence, shards
from parallel.mesh import FLAGS


class AttentionState(NamedTuple):
  """A ring buffer of the last C keys and values; token t lies in slot `t % C`.

  C is the window of local attention, or the capacity of global attention. Heads and channels share
  an axis: where writing a token and reading the ring need different shapes, XLA on the CPU fuses
  the write with each reshape, and copies the ring for each of them at every token.

  Attributes:
    keys: [B, C, G K] rotated keys.
    values: [B, C, G K].
    segment_ids: [B, C] int32; 0 in slots that hold nothing yet, and on padding.
    length: [] int32, tokens seen so far, modulo C: a state may see any number of them.
  """

  keys: jax.Array
  values: jax.Array
  segment_ids: jax.Array
  length: jax.Array


class SelfAttention(nn.Module):
  """Multi-query attention with rotary positions (section 2.3 of the Griffin paper).

  Attributes:
    heads: query heads H.
    head_dim: channels K of a head.
    kv_heads: key/value heads G; 1 is multi-query attention.
    window: tokens a query sees, itself included; None is global attention.
    rotary_fraction: share of each head's channels that carries positions.
    rotary_base: base of the rotary wavelengths.
    rotary_scaling: changes the wavelengths; None leaves them.
    use_input_bias: biases on the maps to queries, keys and values.
    use_output_bias: a bias on the output map (RecurrentGemma has one).
    output_scale: initialisation scale of the output map.
    implementation: an attention kernel's name; None picks by backend.
  """

  heads: int
  head_dim: int
  kv_heads: int = 1
  window: int | None = None
  rotary_fraction: float = 1.0
  rotary_base: float = 10_000.0
  rotary_scaling: RotaryScaling | None = None
  use_input_bias: bool = False
  use_output_bias: bool = False
  output_scale: float = 1.0
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  implementation: str | None = None

  @property
  def constant_state(self) -> bool:
    """The state is a window of keys and values, or all of them."""
    return self.window is not None

  @property
  def input_axis(self) -> str | None:
    """Where shards share key/value heads, x is copied together with the keys and values."""
    return None if self._shares_kv_heads() else "heads"

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segments: Segments,
    state: AttentionState | None = None,
    capacity: int | None = None,
  ) -> tuple[jax.Array, AttentionState | None]:
    """Mixes [B, T, D] over time; see `layers.mixer` for the contract of a mixer."""
    batch, length, width = x.shape
    dtypes = dtypes_of(self)

    for name, heads in {"heads": self.heads, "kv_heads": self.kv_heads}.items():
      split = shards.count("heads" if name == "heads" else self._kv_axis)
      if heads % split:
        raise ValueError(
          f"{heads} {name} cannot be split over {split} devices: a head stays whole. "
          f"Set {FLAGS['model']} to a divisor of {heads}, or train with --gin.{name.upper()} a "
          "multiple "
          f"of {split}."
        )

    def project(name: str, x: jax.Array, heads: int, axis: str) -> jax.Array:
      features, bias = heads * self.head_dim, self.use_input_bias
      return Linear(features, ("embed", axis), use_bias=bias, name=name, **dtypes)(x)

    def cut(x: jax.Array) -> jax.Array:
      return x.reshape(*x.shape[:2], -1, self.head_dim)

    def flat(x: jax.Array) -> jax.Array:
      return x.reshape(*x.shape[:2], -1)

    if self._shares_kv_heads():
      # Every shard computes the same keys and values: their gradients join that of x.
      k = project("key", x, self.kv_heads, self._kv_axis)
      v = project("value", x, self.kv_heads, self._kv_axis)
      x, k, v = shards.copy_together_to_tensor_parallel((x, k, v), "heads")
    else:
      k = project("key", x, self.kv_heads, self._kv_axis)
      v = project("value", x, self.kv_heads, self._kv_axis)
    q = self._rotate(cut(project("query", x, self.heads, "heads")), segments)
    k, v = self._rotate(cut(k), segments), cut(v)

    if state is None:
      mixed = self._attend(q, *self._seen(k, v, segments.ids), segments.ids)
      new_state = None
      if capacity is not None:
        empty = self.initial_state(batch, capacity)
        new_state = _remember(empty, flat(k), flat(v), segments.ids, length)
    elif length == 1 and not sequence.is_split():
      new_state = _write_one(state, flat(k), flat(v), segments.ids)
      mixed = _attend_to_ring(q, new_state, segments.ids)
    else:
      past = _in_time_order(state)
      k, v = flat(k).astype(past.keys.dtype), flat(v).astype(past.values.dtype)
      if sequence.is_split():
        k, v, ids = self._seen(k, v, segments.ids, past)
      else:
        k = jnp.concatenate([past.keys, k], axis=1)
        v = jnp.concatenate([past.values, v], axis=1)
        ids = jnp.concatenate([past.segment_ids, segments.ids], axis=1)
      mixed = self._attend(q, cut(k), cut(v), ids, segments.ids)
      seen = state.length + length * shards.count(sequence.AXIS)
      new_state = _remember(state, k, v, ids, seen)
      new_state = AttentionState(*map(sequence.of_last, new_state))

    output = Linear(
      width, ("heads", "embed"), self.output_scale, self.use_output_bias, name="output", **dtypes
    )
    return output(mixed.reshape(batch, length, -1)), new_state

  @property
  def _kv_axis(self) -> str:
    """One key/value head serves all query heads; several are split as the heads that they serve."""
    return "kv_heads" if self.kv_heads == 1 else "heads"

  def _shares_kv_heads(self) -> bool:
    """Whether the query heads are split over devices and the key/value heads are not."""
    return shards.mesh_axes(self._kv_axis) != shards.mesh_axes("heads")

  def _rotate(self, x: jax.Array, segments: Segments) -> jax.Array:
    return rotate(
      x,
      segments.positions,
      fraction=self.rotary_fraction,
      base=self.rotary_base,
      scaling=self.rotary_scaling,
    )

  def _seen(
    self, k: jax.Array, v: jax.Array, ids: jax.Array, past: AttentionState | None = None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The keys and values that this shard of time sees, its own last, and their segments.

    `past` has those before all shards, in the order of time.
    """
    if not sequence.is_split():
      return k, v, ids
    both = jnp.concatenate([k, v], axis=-1)
    if self.window is None:
      both, ids = sequence.all_until_here(both, ids)
    elif self.window > 1:
      reach, first, first_ids = self.window - 1, None, None
      if past is not None:
        first = jnp.concatenate([past.keys, past.values], axis=-1)
        first_ids = past.segment_ids
      both = jnp.concatenate([sequence.before(both, reach, first), both], axis=1)
      ids = jnp.concatenate([sequence.ids_before(ids, reach, first_ids), ids], axis=1)
    k, v = jnp.split(both, 2, axis=-1)
    return k, v, ids

  @jax.named_scope("attention")
  def _attend(self, q, k, v, kv_segment_ids, q_segment_ids) -> jax.Array:
    return attention(
      q,
      k,
      v,
      q_segment_ids=q_segment_ids,
      kv_segment_ids=kv_segment_ids,
      window=self.window,
      implementation=self.implementation,
    )

  def initial_state(self, batch_size: int, capacity: int) -> AttentionState:
    """An empty ring for `capacity` tokens, or for the window if that is smaller."""
    slots = capacity if self.window is None else min(self.window, capacity)
    shape = (batch_size, slots, self.kv_heads * self.head_dim)
    return AttentionState(
      keys=jnp.zeros(shape, self.dtype),
      values=jnp.zeros(shape, self.dtype),
      segment_ids=jnp.zeros((batch_size, slots), jnp.int32),
      length=jnp.zeros((), jnp.int32),
    )

  def matmul_flops(self, width: int, length: int) -> float:
    """Floating-point operations of the matrix products per token, forward.

    The attention itself counts the keys that a query of a row of `length` tokens sees on average.
    """
    projections = 2 * width * self.head_dim * 2 * (self.heads + self.kv_heads)
    window = length if self.window is None else min(self.window, length)
    keys_seen = window - window * (window - 1) / (2 * length)
    return projections + 2 * 2 * self.heads * self.head_dim * keys_seen


def _write_one(state: AttentionState, k, v, segment_ids) -> AttentionState:
  """Overwrites the oldest slot with one token: k, v [B, 1, G K]; segment_ids [B, 1]."""
  slot = state.length % state.keys.shape[1]

  def write(ring, new):
    return jax.lax.dynamic_update_slice_in_dim(ring, new.astype(ring.dtype), slot, axis=1)

  return AttentionState(
    write(state.keys, k),
    write(state.values, v),
    write(state.segment_ids, segment_ids),
    (state.length + 1) % state.keys.shape[1],
  )


def _attend_to_ring(q: jax.Array, state: AttentionState, q_segment_ids: jax.Array) -> jax.Array:
  """Attends from one token, already written, to all slots of its segment: q [B, 1, H, K]."""
  batch, _, heads, head_dim = q.shape
  kv_heads = state.keys.shape[2] // head_dim
  keys, values = (
    ring.reshape(batch, -1, kv_heads, head_dim) for ring in (state.keys, state.values)
  )
  q = q.reshape(batch, kv_heads, heads // kv_heads, head_dim)
  # In this order, and turned round afterwards: the other one turns the keys round on a CPU.
  scores = jnp.einsum("bcgk,bghk->bgch", keys, q, preferred_element_type=jnp.float32)
  scores = jnp.swapaxes(scores, 2, 3) * (head_dim**-0.5)
  visible = (state.segment_ids == q_segment_ids)[:, None, None, :]
  # The token sees at least itself, so the softmax never runs over nothing.
  weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
  mixed = jnp.einsum("bghc,bcgk->bghk", weights.astype(values.dtype), values)
  return mixed.reshape(batch, 1, heads, head_dim)


def _in_time_order(state: AttentionState) -> AttentionState:
  """Turns the ring so that the oldest slot comes first."""
  shift = -(state.length % state.keys.shape[1])
  return AttentionState(*(jnp.roll(ring, shift, axis=1) for ring in state[:3]), length=state.length)


def _remember(state: AttentionState, k, v, segment_ids, length) -> AttentionState:
  """Stores the last tokens of k, v [B, S, G K], which end at token `length`, in ring order."""
  slots = state.keys.shape[1]

  def store(ring, new):
    new = new[:, -slots:].astype(ring.dtype)
    missing = slots - new.shape[1]
    if missing:
      new = jnp.pad(new, [(0, 0), (missing, 0)] + [(0, 0)] * (new.ndim - 2))
    return jnp.roll(new, length % slots, axis=1)

  return AttentionState(
    store(state.keys, k),
    store(state.values, v),
    store(state.segment_ids, segment_ids),
    jnp.asarray(length % slots, jnp.int32),
  )
