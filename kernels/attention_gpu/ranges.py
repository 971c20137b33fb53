"""Which blocks of queries and keys see each other, for kernels that skip the others."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

PADDING_QUERY, PADDING_KEY = -2, -1  # segment ids beyond the rows' ends: they equal no other


class Pairs(NamedTuple):
  """Pairs of blocks, each [B, blocks of queries, blocks of keys] bool.

  Attributes:
    some: some query of the block may see some key of the block.
    all: every query sees every key, so no mask is needed.
  """

  some: jax.Array
  all: jax.Array


def pairs(
  q_ids: jax.Array,
  kv_ids: jax.Array,
  *,
  q_block: int,
  kv_block: int,
  window: int | None,
  offset: int,
) -> Pairs:
  """Compares the positions and the least and greatest segment ids of blocks.

  Segment ids need not be in order: two blocks whose ranges of ids overlap count as `some`.

  Args:
    q_ids: [B, T] int32, T a multiple of q_block.
    kv_ids: [B, S] int32, S a multiple of kv_block.
    q_block, kv_block: tokens of a block.
    window: tokens that a query sees, itself included; None for all.
    offset: position of the first query among the keys.
  """
  q_from = jnp.arange(0, q_ids.shape[1], q_block)[:, None] + offset
  kv_from = jnp.arange(0, kv_ids.shape[1], kv_block)[None, :]
  q_to, kv_to = q_from + q_block - 1, kv_from + kv_block - 1
  some, every = kv_from <= q_to, kv_to <= q_from
  if window is not None:
    some &= kv_to > q_from - window
    every &= kv_from > q_to - window
  q_least, q_most = (x[:, :, None] for x in _extremes(q_ids, q_block))
  kv_least, kv_most = (x[:, None, :] for x in _extremes(kv_ids, kv_block))
  one_id = (q_least == q_most) & (kv_least == kv_most) & (q_least == kv_least)
  return Pairs(some & (q_least <= kv_most) & (kv_least <= q_most), every & one_id)


def spans(pairs: Pairs) -> jax.Array:
  """Finds, for each block, the others that it has to visit: a range with one without masks in it.

  Args:
    pairs: [B, n, m] each; swapped for ranges of queries per block of keys.

  Returns:
    [B, n, 4] int32: (first, first without a mask, first with a mask again, end) of the m blocks;
    first = end if there is nothing to visit.
  """
  count = pairs.some.shape[2]
  index = jnp.arange(count, dtype=jnp.int32)
  first = jnp.min(jnp.where(pairs.some, index, count), axis=2)
  end = jnp.max(jnp.where(pairs.some, index + 1, 0), axis=2)
  first = jnp.minimum(first, end)
  plain_end = jnp.max(jnp.where(pairs.all, index + 1, 0), axis=2)
  before = (index < plain_end[..., None]) & ~pairs.all
  plain = jnp.max(jnp.where(before, index + 1, 0), axis=2)
  has_plain = plain_end > 0
  plain = jnp.where(has_plain, jnp.maximum(plain, first), first)
  plain_end = jnp.where(has_plain, plain_end, first)
  return jnp.stack([first, plain, plain_end, end], axis=-1).astype(jnp.int32)


def swapped(pairs: Pairs) -> Pairs:
  """The same pairs with blocks of keys before blocks of queries."""
  return Pairs(*(jnp.swapaxes(x, 1, 2) for x in pairs))


def _extremes(ids, block):
  blocks = ids.reshape(ids.shape[0], -1, block)
  return jnp.min(blocks, axis=2), jnp.max(blocks, axis=2)
