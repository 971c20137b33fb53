"""One chunk of the delta rule and its adjoint, on the tiles of one head in a TPU's own memory.

The equations are those of `kernels.delta_rule.chunked`. All arrays have two axes. C tokens of a
chunk are rows of q and k [C, K] and of v [C, V]; the state is transposed, [V, K], so that decays
per channel multiply its last axis.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels.delta_tpu.decays import Level, Tile, by_channel, by_head, decayed_scores, partner
from kernels.delta_tpu.tiles import (
  F32,
  Stages,
  indices,
  pairs,
  product,
  stacked,
  unit_lower_inverse,
)


class Solved(NamedTuple):
  """What the adjoint of a chunk needs of the chunk itself.

  Attributes:
    queries, keys: [C, C] float32, as in `kernels.delta_tpu.decays.Decayed`.
    inverse: [C, C] in q's dtype, `(I + beta keys)^-1`.
    missing: [C, V] float32, what each value adds to what the entering state holds.
    u: [C, V] float32, what each row adds to the state.
  """

  queries: jax.Array
  keys: jax.Array
  inverse: jax.Array
  missing: jax.Array
  u: jax.Array


class Gradients(NamedTuple):
  """Cotangents of a tile: float32, shapes as in `Tile`; `decay` is [C, 1] of sums, or of log_a."""

  q: jax.Array
  k: jax.Array
  v: jax.Array
  beta: jax.Array
  decay: jax.Array


def _scaled(x: jax.Array, decay: jax.Array, u: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
  """Keys or queries x, and a factor u of theirs; a decay per row scales u, which rounds less."""
  if decay.shape[1] == 1:
    return x, (u * decay).astype(dtype)
  return (x * decay).astype(dtype), u.astype(dtype)


def _read(x: jax.Array, decay: jax.Array, h: jax.Array) -> jax.Array:
  """What the entering state h [V, K] holds under the keys or queries x: [rows, V]."""
  dtype = x.dtype
  if decay.shape[1] == 1:
    return decay * product(x, h.astype(dtype), (1, 1))
  return product((x * decay).astype(dtype), h.astype(dtype), (1, 1))


def chunk(
  tile: Tile, h: jax.Array, inverse: jax.Array | None = None
) -> Stages[tuple[Any, jax.Array, Solved]]:
  """Runs a chunk from the transposed state h [V, K] float32.

  Args:
    tile: what it reads.
    h: the entering state.
    inverse: what an earlier run found; y is then left out.

  Returns:
    y [C, V] float32 or None, the state after the chunk, and what the adjoint needs.
  """
  dtype, size = tile.q.dtype, tile.q.shape[0]
  decayed = yield from decayed_scores(tile)
  wants_result = inverse is None
  if inverse is None:
    inverse = yield from unit_lower_inverse(tile.beta * decayed.keys, dtype)
    inverse = inverse.astype(dtype)
  if wants_result:
    held = _read(stacked(tile.k, tile.q), stacked(decayed.entering, decayed.entering), h)
  else:
    held = _read(tile.k, decayed.entering, h)
  yield
  missing = tile.v.astype(F32) - held[:size]
  u = product(inverse, (tile.beta * missing).astype(dtype))
  yield
  y = None
  if wants_result:
    y = held[size:] + product(decayed.queries.astype(dtype), u.astype(dtype))
  k, added = _scaled(tile.k, decayed.leaving, u, dtype)
  h = decayed.kept * h + product(added, k, (0, 0))
  yield
  return y, h, Solved(decayed.queries, decayed.keys, inverse, missing, u)


class _Shared(NamedTuple):
  """Cotangents that do not depend on the kind of decay.

  Attributes:
    queries, keys: [C, C], of the scores with decays.
    readers: [2 C, K], of the queries and the keys that read the entering state, with decays.
    leavers: [C, K], of the keys that reach the state after the chunk, with decays.
  """

  queries: jax.Array
  keys: jax.Array
  readers: jax.Array
  leavers: jax.Array


def adjoint(
  tile: Tile, h: jax.Array, solved: Solved, dy: jax.Array, dh: jax.Array
) -> Stages[tuple[Gradients, jax.Array]]:
  """Runs the adjoint of `chunk`.

  Args:
    tile, h: as in `chunk`.
    solved: what `chunk` found.
    dy: [C, V] cotangent of y, in q's dtype.
    dh: [V, K] float32, cotangent of the state after the chunk.

  Returns:
    the cotangents of the tile, and of h.
  """
  q, k, dtype, size = tile.q, tile.k, tile.q.dtype, tile.q.shape[0]
  rows, columns = indices(size)
  levels, head = [], None
  if tile.log_a is None:
    head = by_head(tile)
    entering, leaving, kept = head.entering, head.leaving, head.kept
  else:
    levels, entering, leaving = by_channel(tile.log_a)
    kept = entering[-1:]
  du = product(solved.queries.astype(dtype), dy, (0, 0)) + _read(k, leaving, dh)
  yield
  dw = product(solved.inverse, du.astype(dtype), (0, 0))
  yield
  dv = tile.beta * dw
  found = product(stacked(dy, dw.astype(dtype)), solved.u.astype(dtype), (1, 1))
  yield
  dqueries = jnp.where(rows >= columns, found[:size], 0)
  dmatrix = jnp.where(rows > columns, -found[size:], 0)
  dbeta = jnp.sum(dw * solved.missing, axis=1, keepdims=True)
  dbeta += jnp.sum(dmatrix * solved.keys, axis=1, keepdims=True)
  both = stacked(entering, entering)
  readers, dread = _scaled(stacked(q, k), both, stacked(dy.astype(F32), -dv), dtype)
  dreaders = product(dread, h.astype(dtype))
  yield
  _, added = _scaled(k, leaving, solved.u, dtype)
  dleavers = product(added, dh.astype(dtype))
  yield
  dh_before = kept * dh + product(dread, readers, (0, 0))
  yield
  if head is not None:
    held = jnp.sum(jnp.sum(dh * h, axis=1, keepdims=True), axis=0, keepdims=True)
    shared = _Shared(dqueries, tile.beta * dmatrix, dreaders, dleavers)
    dq, dk, ddecay = yield from _pull_by_head(tile, head.within, shared, kept * held)
  else:
    dkept = kept * jnp.sum(dh * h, axis=0, keepdims=True)
    shared = _Shared(dqueries, tile.beta * dmatrix, dreaders * both, dleavers * leaving)
    dq, dk, ddecay = yield from _pull_by_channel(tile, levels, shared, dkept)
  return Gradients(dq, dk, dv, dbeta, ddecay), dh_before


def _at_end(size: int, value: jax.Array) -> jax.Array:
  """A value in the last of so many rows, zero in the others."""
  return jnp.where(lax.broadcasted_iota(jnp.int32, (size, 1), 0) == size - 1, value, 0)


def _pull_by_head(tile: Tile, within, shared: _Shared, dkept):
  """Cotangents of q, k and the running sums [C, 1]; dkept [1, 1] is of the sum of the chunk."""
  q, k, dtype, size = tile.q, tile.k, tile.q.dtype, tile.q.shape[0]
  dscores = stacked(shared.queries * within, shared.keys * within).astype(dtype)
  found = product(dscores, k)
  yield
  dq = shared.readers[:size] + found[:size]
  dk_late = shared.readers[size:] + found[size:]
  dk_early = shared.leavers + product(dscores, stacked(q, k), (0, 0))
  yield
  # A sum decays what its token reads, and grows what a later token reads of it.
  wide_k = k.astype(F32)
  ddecay = q.astype(F32) * dq + wide_k * (dk_late - dk_early)
  ddecay = jnp.sum(ddecay, axis=1, keepdims=True)
  left = jnp.sum(wide_k * shared.leavers, axis=1, keepdims=True)
  ddecay += _at_end(size, jnp.sum(left, axis=0, keepdims=True) + dkept)
  return dq, dk_late + dk_early, ddecay


def _pull_by_channel(tile: Tile, levels: list[Level], shared: _Shared, dkept):
  """Cotangents of q, k and log_a [C, K]; dkept [1, K] is of the sum of the whole chunk.

  It goes back through `by_channel`: its sums up to each token, after it, and of whole blocks.
  """
  q, k, dtype, size = tile.q, tile.k, tile.q.dtype, tile.q.shape[0]
  rows, columns = indices(size)
  wide_q, wide_k = q.astype(F32), k.astype(F32)
  own = jnp.sum(jnp.where(rows == columns, shared.queries, 0), axis=1, keepdims=True)
  dq = shared.readers[:size] + own * wide_k
  dk = shared.readers[size:] + shared.leavers + own * wide_q
  duntil = wide_q * shared.readers[:size] + wide_k * shared.readers[size:]
  duntil += _at_end(size, dkept)
  dafter = wide_k * shared.leavers
  dtotal = jnp.zeros_like(dafter)
  for level in reversed(levels):
    near_q, near_k = wide_q * level.decay, wide_k * level.decay
    joined = pairs(size, level.size)
    dscores = (jnp.where(joined, x, 0) for x in (shared.queries, shared.keys))
    dscores = stacked(*dscores).astype(dtype)
    found = product(dscores, near_k.astype(dtype))
    yield
    dnear_q = found[:size]
    dnear_k = found[size:] + product(dscores, stacked(near_q, near_k).astype(dtype), (0, 0))
    yield
    dq += dnear_q * level.decay
    dk += dnear_k * level.decay
    dother = dtotal + jnp.where(level.late, duntil, dafter)
    dtotal += partner(dother, level.size, level.late)
    dlevel = near_q * dnear_q + near_k * dnear_k
    duntil += jnp.where(level.late, dlevel, 0)
    dafter += jnp.where(level.late, 0, dlevel)
  return dq, dk, duntil + dtotal
