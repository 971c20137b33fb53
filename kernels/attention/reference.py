"""Reference attention with the whole T x S mask, differentiated by JAX: simple enough to trust."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_segment_ids: jax.Array | None,
  kv_segment_ids: jax.Array | None,
  window: int | None,
  scale: float,
) -> jax.Array:
  """See `kernels.attention.attention`."""
  batch, length, heads, head_dim = q.shape
  keys, kv_heads = k.shape[1:3]
  wide = jnp.promote_types(q.dtype, jnp.float32)
  grouped = q.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
  scores = jnp.einsum("btghk,bsgk->bghts", grouped, k, preferred_element_type=wide) * scale

  distance = (jnp.arange(length)[:, None] + keys - length) - jnp.arange(keys)[None, :]
  visible = distance >= 0
  if window is not None:
    visible &= distance < window
  visible = visible[None]
  if q_segment_ids is not None and kv_segment_ids is not None:
    visible &= q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]
  visible = visible[:, None, None]

  # A finite number instead of minus infinity: rows without any visible key, and their gradients,
  # stay finite.
  weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(wide).min), axis=-1)
  weights = jnp.where(visible, weights, 0).astype(v.dtype)
  return jnp.einsum("bghts,bsgk->btghk", weights, v).reshape(q.shape).astype(q.dtype)
