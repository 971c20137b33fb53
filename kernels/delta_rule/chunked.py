"""The delta rule as products of matrices over chunks of time (the WY form, Bischof and Van Loan
1987; section 3 of arXiv 2406.06484, section 3.3 of arXiv 2412.06464).

With decays from the start of the chunk, row s of a chunk adds `k_s u_s^T` to the state, where

    u_s = beta_s (v_s - what the state before it holds under k_s)

and what it holds is read from the state that enters the chunk and from the rows before. So
`(I + A) U = beta (V - K h)` with a strictly lower triangular A, which one inverse solves for all
rows. A scan carries the state from chunk to chunk; its backward pass computes each chunk again.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels import checkpoint_names
from kernels.delta_rule import chunk_of, reference
from kernels.delta_rule.triangular import unit_lower_inverse
from kernels.log_decays import running_sums
from kernels.manual_axes import vary_together
from kernels.wide_product import wide_product


class _Decayed(NamedTuple):
  """Scores with decays, and the decays at the ends of a chunk of Q tokens and R = J Q rows.

  Attributes:
    queries: [B, H, Q, R], of query t and key s `q_t^T diag(a_{s+1} ... a_t) k_s`; what it holds
      where the key is of a later token means nothing.
    keys: [B, H, R, R], of key t and key s likewise.
    entering: decays from the start of the chunk to each token, its own included: [B, H, Q, 1 or K].
    leaving: decays after each token to the end of the chunk: [B, H, Q, 1 or K].
    kept: decays of the whole chunk: [B, H, 1 or K, 1].
  """

  queries: jax.Array
  keys: jax.Array
  entering: jax.Array
  leaving: jax.Array
  kept: jax.Array


def delta_rule(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  beta: jax.Array,
  log_a: jax.Array | None,
  h0: jax.Array | None,
  reset: jax.Array | None,
  last: bool,
  chunk: int,
) -> tuple[jax.Array, jax.Array | None]:
  """See `kernels.delta_rule.delta_rule`."""
  batch, length, heads, channels = q.shape
  if length == 1 and h0 is not None:
    return reference.delta_rule(q, k, v, beta, log_a, h0, reset, last, chunk)
  chunk = chunk_of(chunk, length)
  count, corrections = -(-length // chunk), k.shape[1] // length
  if h0 is None:
    h0 = jnp.zeros((batch, heads, channels, v.shape[3]), beta.dtype)

  def cut(x, steps=1):
    """Pads and reshapes [B, steps T, ...] to [C, B, steps Q, ...].

    The padding decays nothing, corrects nothing and starts no segment.
    """
    if x is None:
      return None
    margin = steps * (count * chunk - length)
    x = jnp.pad(x, ((0, 0), (0, margin)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(batch, count, steps * chunk, *x.shape[2:]), 1, 0)

  rows = (cut(x, corrections) for x in (k, v, beta))
  arrays = cut(q), *rows, cut(log_a), h0.astype(beta.dtype), cut(reset)
  y, h_last = _chunks(*vary_together(*arrays))
  y = jnp.moveaxis(y, 0, 1).reshape(batch, count * chunk, *y.shape[3:])[:, :length]
  return y, h_last if last else None


@jax.custom_vjp
def _chunks(q, k, v, beta, log_a, h0, reset):
  """Runs all chunks in turn.

  Args:
    q: [C, B, Q, H, K]; k, v, beta: [C, B, R, H, ...]; log_a: [C, B, Q, H, ...] or None.
    h0: [B, H, K, V].
    reset: [C, B, Q] bool or None.

  Returns:
    y: [C, B, Q, H, V], and the last state.
  """
  return _forward(q, k, v, beta, log_a, h0, reset)[0]


def _forward(q, k, v, beta, log_a, h0, reset):
  def step(h, inputs):
    after, y = _chunk(h, *inputs)
    return after, (y, h)

  inputs = q, k, v, beta, log_a, reset
  h_last, (y, before) = jax.lax.scan(step, h0, inputs)
  y, before = checkpoint_names.recurrence(y, before)
  return (y, h_last), (inputs, before)


def _backward(residuals, cotangents):
  (*arrays, reset), before = residuals
  dy, dh_last = cotangents

  def step(dh, inputs):
    arrays, reset, h, dy = inputs
    _, pull = jax.vjp(functools.partial(_chunk, reset=reset), h, *arrays)
    dh, *gradients = pull((dh, dy))
    return dh, tuple(gradients)

  inputs = tuple(arrays), reset, before, dy
  dh0, gradients = jax.lax.scan(step, dh_last, inputs, reverse=True)
  return *gradients, dh0, None


_chunks.defvjp(_forward, _backward)


def _chunk(h, q, k, v, beta, log_a, reset):
  """Runs one chunk from the state h [B, H, K, V]: shapes as in `_chunks`, without C.

  Returns:
    the state after the chunk, and y [B, Q, H, V].
  """
  dtype, wide = q.dtype, beta.dtype
  tokens, corrections = q.shape[1], k.shape[1] // q.shape[1]
  # Heads before time.
  q, k, v, beta = (jnp.moveaxis(x, 2, 1) for x in (q, k, v, beta))
  segment = jnp.zeros((*q.shape[:1], tokens), jnp.int32)
  if reset is not None:
    segment = jnp.cumsum(reset, axis=1)
  if log_a is None:
    log_a = jnp.zeros((*q.shape[:3], 1), wide)[..., 0]
  else:
    log_a = jnp.moveaxis(log_a, 2, 1)
  decayed = (_by_head if log_a.ndim == 3 else _by_channel)(q, k, log_a)

  def rows(x, axis):
    """Repeats each token of an axis for its corrections."""
    return x if corrections == 1 else jnp.repeat(x, corrections, axis=axis)

  # [B, 1, ...]: the segment that enters the chunk is number 0.
  entered = (segment == 0)[:, None, :, None]
  left = (segment == segment[:, -1:])[:, None, :, None]
  step = jnp.arange(tokens)
  row = jnp.arange(tokens * corrections)
  joined = segment[:, :, None] == segment[:, None, :]
  seen = rows(joined & (step[:, None] >= step), 2)[:, None]
  before = rows(rows(joined, 1), 2)[:, None] & (row[:, None] > row)

  entering = jnp.where(entered, decayed.entering, 0)
  leaving = jnp.where(left, decayed.leaving, 0)

  def read(x, decay):
    """What the entering state holds under the keys or queries x, [B, H, rows, V].

    A decay per row scales the product, which rounds less than the keys would.
    """
    if decay.shape[-1] == 1:
      return decay * wide_product("bhrk,bhkv->bhrv", x, h.astype(dtype), wide)
    return wide_product("bhrk,bhkv->bhrv", (x * decay).astype(dtype), h.astype(dtype), wide)

  wanted = beta[..., None] * (v.astype(wide) - read(k, rows(entering, 2)))
  solved = unit_lower_inverse(jnp.where(before, beta[..., None] * decayed.keys, 0))
  u = wide_product("bhrs,bhsv->bhrv", solved.astype(dtype), wanted.astype(dtype), wide)
  y = read(q, entering)
  queries = jnp.where(seen, decayed.queries, 0).astype(dtype)
  y += wide_product("bhqr,bhrv->bhqv", queries, u.astype(dtype), wide)
  kept = jnp.where(entered[:, :, -1:], decayed.kept, 0)
  leaving = rows(leaving, 2)
  if leaving.shape[-1] == 1:
    u = leaving * u
  else:
    k = k * leaving
  h = kept * h + wide_product("bhrk,bhrv->bhkv", k.astype(dtype), u.astype(dtype), wide)
  return h, jnp.moveaxis(y, 1, 2).astype(dtype)


def _by_head(q, k, log_a):
  """Decays with one number per head and token: log_a [B, H, Q]."""
  until = running_sums(log_a)
  corrections, wide = k.shape[2] // q.shape[2], log_a.dtype

  def decay(sums):
    return jnp.exp(sum(sums))

  # Above the diagonal the sums are positive, and what is there is not used.
  within = decay([jnp.tril(u[..., :, None] - u[..., None, :]) for u in until])
  if corrections > 1:
    within = jnp.repeat(within, corrections, axis=3)
  queries = wide_product("bhqk,bhrk->bhqr", q, k, wide) * within
  if corrections > 1:
    within = jnp.repeat(within, corrections, axis=2)
  keys = wide_product("bhtk,bhsk->bhts", k, k, wide) * within
  return _Decayed(
    queries,
    keys,
    entering=decay(until)[..., None],
    leaving=decay([u[..., -1:] - u for u in until])[..., None],
    kept=decay([u[..., -1:] for u in until])[..., None],
  )


def _by_channel(q, k, log_a):
  """Decays with one number per channel of the keys: log_a [B, H, Q, K].

  The decay from token s to token t is the product of two: from s to a border between them, and from
  there to t. Both are at most 1, so that neither overflows however fast a channel decays. The
  borders are the middles of the chunk, of its halves, of their halves, and so on. All sums of
  logarithms have terms of one sign, so that none cancels.
  """
  dtype, wide = q.dtype, log_a.dtype
  *lead, tokens, channels = q.shape
  corrections = k.shape[2] // tokens
  k = k.reshape(*lead, tokens, corrections, channels)
  # Blocks of one token: its own decay is before its corrections and after nothing.
  until, after = log_a[..., None, :], jnp.zeros_like(log_a)[..., None, :]
  both = jnp.concatenate([q[..., None, :], k], axis=3)
  found = wide_product("bhtik,bhtsk->bhtis", both, k, wide)
  queries, keys = found[..., :1, :], found[..., 1:, :]
  size = 1
  while size < tokens:

    def halves(x):
      """[B, H, pairs, rows of a block, ...] of the first and of the second block of each pair."""
      x = x.reshape(*lead, -1, 2, *x.shape[3:])
      return x[:, :, :, 0], x[:, :, :, 1]

    def blocks(x, size=size):
      return halves(x.reshape(*lead, -1, size, *x.shape[3:]))

    (early_until, late_until), (early_after, late_after) = halves(until), halves(after)
    (_, late_q), (early_k, late_k) = blocks(q), blocks(k)
    decay = jnp.exp(late_until)
    late_q = (late_q * decay).astype(dtype)
    late_k = (late_k * decay[..., None, :]).astype(dtype)
    early_k = (early_k * jnp.exp(early_after)[..., None, :]).astype(dtype)
    late_k, early_k = (
      x.reshape(*lead, -1, size * corrections, channels) for x in (late_k, early_k)
    )
    found = wide_product(
      "bhptk,bhpsk->bhpts", jnp.concatenate([late_q, late_k], axis=3), early_k, wide
    )
    queries = _joined(*halves(queries), found[..., :size, :])
    keys = _joined(*halves(keys), found[..., size:, :])
    until = jnp.concatenate([early_until, late_until + early_until[..., -1:, :]], axis=3)
    # What the second block decays in all.
    early_after = early_after + late_until[..., -1:, :]
    after = jnp.concatenate([early_after, late_after], axis=3)
    size *= 2
  until, after = until[:, :, 0], after[:, :, 0]
  return _Decayed(
    queries[:, :, 0],
    keys[:, :, 0],
    entering=jnp.exp(until),
    leaving=jnp.exp(after),
    kept=jnp.exp(until[:, :, -1])[..., None],
  )


def _joined(first, second, below):
  """The block matrices [[first, 0], [below, second]] of the last two axes."""
  above = jnp.zeros_like(first, shape=(*first.shape[:-1], second.shape[-1]))
  rows = [jnp.concatenate(row, axis=-1) for row in ((first, above), (below, second))]
  return jnp.concatenate(rows, axis=-2)
