"""Attention in plain XLA at O(T * window) time and memory, forward and backward.

Queries are cut into blocks. With a window, every block sees the same number of keys, so all blocks
run as one batched product. Without a window, block i sees the first i + 1 blocks of keys, and the
blocks run one after the other. No attention weights are kept for the backward pass: it computes
them again from the logarithm of each row's sum (Dao et al. 2022, in blocks).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from base.custom_gradient import custom_vjp
from kernels import checkpoint_names

MAX_GLOBAL_BLOCKS = 16  # without a window, the code of each block is unrolled
MIN_GLOBAL_BLOCK = 256
MIN_LOCAL_BLOCK = 16


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
  if q_segment_ids is None:
    q_segment_ids = jnp.zeros(q.shape[:2], jnp.int32)
    kv_segment_ids = jnp.zeros(k.shape[:2], jnp.int32)
  run = _global
  if window is not None and window < k.shape[1]:
    run = partial(_windowed, window=window)
  return run(q, k, v, q_segment_ids, kv_segment_ids, scale=scale)


def _windowed(q, k, v, q_ids, kv_ids, *, window, scale):
  """Attends in all blocks at once: block i of b queries to its own keys and n blocks before."""
  batch, length, heads, head_dim = q.shape
  keys, kv_heads = k.shape[1:3]
  # Blocks of half a window: a block of queries reads 1.5 windows of keys, not 2 as for whole ones.
  size = min(max(MIN_LOCAL_BLOCK, window // 2), length)
  blocks = -(-length // size)
  before = -(-(window - 1) // size)
  offset, margin, end = keys - length, before * size, blocks * size - length

  def align(x, fill):
    """Returns keys from `margin` before the first query to the end of the last block."""
    x = x[:, max(0, offset - margin) :]
    return _pad(x, max(0, margin - offset), end, fill)

  def spans(x):
    """Gathers the keys of each block: [B, (n + N) b, ...] to [B, N, (n + 1) b, ...]."""
    x = x.reshape(batch, before + blocks, size, *x.shape[2:])
    return jnp.concatenate([x[:, j : j + blocks] for j in range(before + 1)], axis=2)

  distance = jnp.arange(size)[:, None] + margin - jnp.arange(margin + size)[None, :]
  # Ids of padding keys (-1) differ from those of all segments and of padding queries (-2).
  ids = _pad(q_ids, 0, end, -2).reshape(batch, blocks, size, 1)
  same = ids == spans(align(kv_ids, -1))[:, :, None, :]
  visible = (distance >= 0) & (distance < window) & same
  q = _pad(q, 0, end, 0).reshape(batch, blocks, size, kv_heads, heads // kv_heads, head_dim)
  mixed = _attend(q, spans(align(k, 0)), spans(align(v, 0)), visible, scale)
  return mixed.reshape(batch, blocks * size, heads, head_dim)[:, :length]


def _global(q, k, v, q_ids, kv_ids, *, scale):
  """Attends in one block of queries after the other, to all keys up to the block's end."""
  batch, length, heads, head_dim = q.shape
  keys, kv_heads = k.shape[1:3]
  offset = keys - length
  size = max(MIN_GLOBAL_BLOCK, -(-length // MAX_GLOBAL_BLOCKS))
  grouped = q.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
  mixed = []
  for start in range(0, length, size):
    stop = min(start + size, length)
    seen = offset + stop
    distance = jnp.arange(start, stop)[:, None] + offset - jnp.arange(seen)[None, :]
    same = q_ids[:, start:stop, None] == kv_ids[:, None, :seen]
    visible = (distance >= 0) & same
    mixed.append(_attend(grouped[:, start:stop], k[:, :seen], v[:, :seen], visible, scale))
  return jnp.concatenate(mixed, axis=1).reshape(q.shape)


def _pad(x, before, after, fill):
  return jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)


@custom_vjp(nondiff_argnums=(4,))
def _attend(q, k, v, visible, scale):
  """Attends from the queries of a block to one span of keys.

  Args:
    q: [..., b, G, H / G, K] queries.
    k, v: [..., L, G, K] keys and values.
    visible: [..., b, L] bool, True where a query sees a key.
    scale: factor on the scores.

  Returns:
    [..., b, G, H / G, K].
  """
  return _attend_forward(q, k, v, visible, scale)[0]


def _attend_forward(q, k, v, visible, scale):
  scores = _scores(q, k, scale)
  mask = visible[..., None, :, None, :]
  largest = jnp.max(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1, keepdims=True)
  weights = jnp.where(mask, jnp.exp(scores - largest), 0)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  total = jnp.where(total == 0, 1, total)  # a query that sees no key returns zeros
  mixed = jnp.einsum(
    "...gthl,...lgk->...tghk", weights.astype(v.dtype), v, preferred_element_type=scores.dtype
  )
  mixed = (mixed / jnp.moveaxis(total, -4, -3)).astype(q.dtype)
  mixed, log_total = checkpoint_names.attention(mixed, largest + jnp.log(total))
  return mixed, (q, k, v, visible, mixed, log_total)


def _attend_backward(scale, residuals, g):
  q, k, v, visible, mixed, log_total = residuals
  wide = log_total.dtype
  product = partial(jnp.einsum, preferred_element_type=wide)
  weights = jnp.exp(_scores(q, k, scale) - log_total)
  weights = jnp.where(visible[..., None, :, None, :], weights, 0)
  dot = jnp.sum(g.astype(wide) * mixed.astype(wide), axis=-1)
  dweights = product("...tghk,...lgk->...gthl", g, v)
  dscores = weights * (dweights - jnp.moveaxis(dot, -2, -3)[..., None]) * scale
  dscores = dscores.astype(q.dtype)
  dv = product("...gthl,...tghk->...lgk", weights.astype(g.dtype), g)
  dk = product("...gthl,...tghk->...lgk", dscores, q)
  dq = product("...gthl,...lgk->...tghk", dscores, k)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


def _scores(q, k, scale):
  """Returns scores [..., G, b, H / G, L], float32 or wider.

  The rows of one key/value head are next to each other.
  """
  wide = jnp.promote_types(q.dtype, jnp.float32)
  return scale * jnp.einsum("...tghk,...lgk->...gthl", q, k, preferred_element_type=wide)


_attend.defvjp(_attend_forward, _attend_backward)
