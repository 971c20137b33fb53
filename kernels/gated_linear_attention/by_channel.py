"""Chunks with a decay per channel of the keys and token.

A scan carries the state from chunk to chunk, and its backward pass computes each chunk again: the
decayed queries and keys of a whole row, at every level of halves, would be its largest arrays.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels import checkpoint_names
from kernels.gated_linear_attention import chunk_of
from kernels.manual_axes import vary_together
from kernels.wide_product import wide_product


def chunked(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_a: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
  last: bool,
  chunk: int,
) -> tuple[jax.Array, jax.Array | None]:
  """See `kernels.gated_linear_attention.gated_linear_attention`, with log_a [B, T, H, K]."""
  batch, length, heads, channels = q.shape
  chunk = chunk_of(chunk, length)
  count = -(-length // chunk)
  if h0 is None:
    h0 = jnp.zeros((batch, heads, channels, v.shape[3]), log_a.dtype)

  def cut(x):
    """Pads and reshapes [B, T, ...] to [C, B, Q, ...].

    The padding steps decay nothing, write nothing and start no segment.
    """
    if x is None:
      return None
    x = jnp.pad(x, ((0, 0), (0, count * chunk - length)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)

  arrays = *(cut(x) for x in (q, k, v, log_a)), h0.astype(log_a.dtype), cut(reset)
  y, h_last = _chunks(*vary_together(*arrays))
  y = jnp.moveaxis(y, 0, 1).reshape(batch, count * chunk, *y.shape[3:])[:, :length]
  return y, h_last if last else None


@jax.custom_vjp
def _chunks(q, k, v, log_a, h0, reset):
  """Runs all chunks in turn.

  Args:
    q, k, log_a: [C, B, Q, H, K]; v: [C, B, Q, H, V].
    h0: [B, H, K, V].
    reset: [C, B, Q] bool or None.

  Returns:
    y: [C, B, Q, H, V], and the last state.
  """
  return _forward(q, k, v, log_a, h0, reset)[0]


def _forward(q, k, v, log_a, h0, reset):
  def step(h, inputs):
    after, y = _chunk(h, *inputs)
    return after, (y, h)

  inputs = q, k, v, log_a, reset
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


def _chunk(h, q, k, v, log_a, reset):
  """Runs one chunk from the state h [B, H, K, V]: shapes as in `_chunks`, without C.

  Returns:
    the state after the chunk, and y [B, Q, H, V].
  """
  dtype, wide, tokens = q.dtype, log_a.dtype, q.shape[1]
  # Heads before time.
  q, k, v, log_a = (jnp.moveaxis(x, 2, 1) for x in (q, k, v, log_a))
  scores, until, after = _decayed(q, k, log_a)
  seen = jnp.arange(tokens)[:, None] >= jnp.arange(tokens)
  entering, leaving = jnp.exp(until), jnp.exp(after)
  kept = entering[:, :, -1, :, None]
  if reset is not None:
    segment = jnp.cumsum(reset, axis=1)
    # [B, 1, Q, 1]: the segment that enters the chunk is number 0.
    entered = (segment == 0)[:, None, :, None]
    seen = (seen & (segment[:, :, None] == segment[:, None, :]))[:, None]
    kept = jnp.where(entered[:, :, -1:], kept, 0)
    entering = jnp.where(entered, entering, 0)
    leaving = jnp.where((segment == segment[:, -1:])[:, None, :, None], leaving, 0)
  weights = jnp.where(seen, scores, 0).astype(dtype)
  y = wide_product("bhts,bhsv->bhtv", weights, v, wide)
  y += wide_product("bhtk,bhkv->bhtv", (q * entering).astype(dtype), h.astype(dtype), wide)
  h = kept * h + wide_product("bhsk,bhsv->bhkv", (k * leaving).astype(dtype), v, wide)
  return h, jnp.moveaxis(y, 1, 2).astype(dtype)


def _decayed(q, k, log_a):
  """Scores with the decays between query and key, and the decays from and to the chunk's ends.

  The decay from token s to token t is the product of two: from s to a border between them, and from
  there to t. Both are at most 1, so that neither overflows however fast a channel decays. The
  borders are the middles of the chunk, of its halves, of their halves, and so on. All sums of
  logarithms have terms of one sign, so that none cancels.

  Args:
    q, k, log_a: [B, H, Q, K].

  Returns:
    scores: [B, H, Q, Q], `q_t^T diag(a_{s+1} ... a_t) k_s`; 0 where s is a later token.
    until: [B, H, Q, K] logarithms of the decays from the start of the chunk to each token, its own
      included.
    after: [B, H, Q, K] logarithms of the decays after each token to the end of the chunk.
  """
  dtype, wide = q.dtype, log_a.dtype
  *lead, tokens, channels = q.shape
  # Blocks of one token.
  scores = jnp.sum(q.astype(wide) * k.astype(wide), axis=-1)[..., None, None]
  until, after = log_a[..., None, :], jnp.zeros_like(log_a)[..., None, :]
  size = 1
  while size < tokens:

    def halves(x):
      """[B, H, pairs, rows of a block, ...] of the first and of the second block of each pair."""
      x = x.reshape(*lead, -1, 2, *x.shape[3:])
      return x[:, :, :, 0], x[:, :, :, 1]

    (early_until, late_until), (early_after, late_after) = halves(until), halves(after)
    blocks = (*lead, -1, size, channels)
    late_q = (halves(q.reshape(blocks))[1] * jnp.exp(late_until)).astype(dtype)
    early_k = (halves(k.reshape(blocks))[0] * jnp.exp(early_after)).astype(dtype)
    below = wide_product("bhptk,bhpsk->bhpts", late_q, early_k, wide)
    early, late = halves(scores)
    above = jnp.zeros_like(below)
    rows = [jnp.concatenate(row, axis=-1) for row in ((early, above), (below, late))]
    scores = jnp.concatenate(rows, axis=-2)
    until = jnp.concatenate([early_until, late_until + early_until[..., -1:, :]], axis=3)
    # What the second block decays in all.
    after = jnp.concatenate([early_after + late_until[..., -1:, :], late_after], axis=3)
    size *= 2
  return scores[:, :, 0], until[:, :, 0], after[:, :, 0]
