"""Decays within a chunk of tokens, and the scores of its queries and keys with them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels.delta_tpu.tiles import F32, Stages, column, indices, pairs, product, stacked


class Tile(NamedTuple):
  """What a chunk of a head reads.

  Attributes:
    q, k: [C, K], in one dtype.
    v: [C, V] in that dtype.
    beta: [C, 1] float32.
    sums: with a decay per head, the two parts of its running sums (`kernels.log_decays`), each
      [1, C] float32; otherwise None.
    log_a: with a decay per channel, [C, K] float32 <= 0; otherwise None.
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  beta: jax.Array
  sums: tuple[jax.Array, jax.Array] | None
  log_a: jax.Array | None


class Decayed(NamedTuple):
  """Scores with decays, and the decays at the ends of a chunk.

  Attributes:
    queries: [C, C]: of query t and key s <= t, `q_t^T diag(a_{s+1} ... a_t) k_s`; 0 for s > t.
    keys: [C, C], of key t and key s < t likewise; 0 for s >= t.
    entering: decays from the start of the chunk to each token, its own included: [C, 1 or K].
    leaving: decays after each token to the end of the chunk: [C, 1 or K].
    kept: decays of the whole chunk: [1, 1 or K].
  """

  queries: jax.Array
  keys: jax.Array
  entering: jax.Array
  leaving: jax.Array
  kept: jax.Array


class ByHead(NamedTuple):
  """Decays with one number per head and token: within the chunk [C, C], and as in `Decayed`."""

  within: jax.Array
  entering: jax.Array
  leaving: jax.Array
  kept: jax.Array


def by_head(tile: Tile) -> ByHead:
  """The decays of a tile with running sums."""
  sums = [(part, column(part)) for part in tile.sums or ()]
  rows, columns = indices(tile.q.shape[0])
  from_to = sum(until - part for part, until in sums)
  return ByHead(
    within=jnp.exp(jnp.where(rows >= columns, from_to, 0)),
    entering=jnp.exp(sum(until for _, until in sums)),
    leaving=jnp.exp(sum(until[-1:] - until for _, until in sums)),
    kept=jnp.exp(sum(until[-1:] for _, until in sums)),
  )


class Level(NamedTuple):
  """Decays of a chunk in blocks of `size` tokens, in pairs of an early and a late one.

  Attributes:
    size: tokens of a block.
    late: [C, 1], whether a token is in the late block of its pair.
    decay: [C, K], between each token and the border of its pair.
  """

  size: int
  late: jax.Array
  decay: jax.Array


def partner(x: jax.Array, size: int, late: jax.Array) -> jax.Array:
  """The rows of x [C, K], of which those of a pair of blocks change places."""
  if 2 * size == x.shape[0]:
    return jnp.roll(x, size, axis=0)
  return jnp.where(late, jnp.roll(x, size, axis=0), jnp.roll(x, x.shape[0] - size, axis=0))


def by_channel(log_a: jax.Array) -> tuple[list[Level], jax.Array, jax.Array]:
  """Decays to the borders of all levels, from the start to each token, and to the end after it.

  The decay between two tokens is that up to the border between them times that from there on, each
  at most 1. Sums of logarithms have terms of one sign, so that none cancels.
  """
  until, after, total = log_a, jnp.zeros_like(log_a), log_a
  rows = lax.broadcasted_iota(jnp.int32, (log_a.shape[0], 1), 0)
  levels, size = [], 1
  while size < log_a.shape[0]:
    late = rows & size != 0
    levels.append(Level(size, late, jnp.exp(jnp.where(late, until, after))))
    other = partner(total, size, late)
    until = until + jnp.where(late, other, 0)
    after = after + jnp.where(late, 0, other)
    total = total + other
    size *= 2
  return levels, jnp.exp(until), jnp.exp(after)


def decayed_scores(tile: Tile) -> Stages[Decayed]:
  """The scores of a tile's queries and keys."""
  q, k = tile.q, tile.k
  size = q.shape[0]
  rows, columns = indices(size)
  if tile.log_a is None:
    found = product(stacked(q, k), k, (1, 1))
    yield
    decays = by_head(tile)
    return Decayed(
      jnp.where(rows >= columns, found[:size] * decays.within, 0),
      jnp.where(rows > columns, found[size:] * decays.within, 0),
      decays.entering,
      decays.leaving,
      decays.kept,
    )
  levels, entering, leaving = by_channel(tile.log_a)
  own = jnp.sum(q.astype(F32) * k.astype(F32), axis=1, keepdims=True)
  queries = jnp.where(rows == columns, own, 0)
  keys = jnp.zeros_like(queries)
  for level in levels:
    near_q, near_k = ((x * level.decay).astype(q.dtype) for x in (q, k))
    found = product(stacked(near_q, near_k), near_k, (1, 1))
    yield
    joined = pairs(size, level.size) & (rows > columns)
    queries = jnp.where(joined, found[:size], queries)
    keys = jnp.where(joined, found[size:], keys)
  return Decayed(queries, keys, entering, leaving, entering[-1:])
