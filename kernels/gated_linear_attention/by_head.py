"""Chunks with one decay per head and token (section 6 of Dao and Gu 2024).

A decay per head scales products, so that all chunks of a row are computed at once, and groups of
heads share scores.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels import checkpoint_names
from kernels.log_decays import running_sums


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
  """See `kernels.gated_linear_attention.gated_linear_attention`, with log_a [B, T, H]."""
  batch, length, heads, values = v.shape
  groups, channels = q.shape[2:]
  chunk = min(chunk, length)
  count = -(-length // chunk)
  starts = jnp.zeros((batch, length), bool) if reset is None else reset

  def cut(x):
    """Pads and reshapes [B, T, ...] to [B, C, Q, ...].

    The padding steps decay nothing, write nothing and start no segment.
    """
    x = jnp.pad(x, ((0, 0), (0, count * chunk - length)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(batch, count, chunk, *x.shape[2:])

  if h0 is not None:
    h0 = h0.astype(log_a.dtype).reshape(batch, groups, -1, channels, values)
  y, h_last = _chunks(
    cut(q),
    cut(k),
    cut(v.reshape(batch, length, groups, -1, values)),
    jnp.moveaxis(cut(log_a.reshape(batch, length, groups, -1)), 2, -1),
    h0,
    jnp.cumsum(cut(starts).reshape(batch, -1), axis=1).reshape(batch, count, chunk),
    last,
  )
  y = y.reshape(batch, count * chunk, heads, values)[:, :length]
  if not last:
    return *checkpoint_names.recurrence(y), None
  return checkpoint_names.recurrence(y, h_last.reshape(batch, heads, channels, values))


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=6)
def _chunks(q, k, v, log_a, h0, segment, last):
  """Computes all chunks; the backward pass keeps the arguments and computes the matrices again.

  Axes: B rows, C chunks, Q (t, s) steps, G groups, M heads of a group, K and V (n and p) of the
  state.

  Args:
    q, k: [B, C, Q, G, K].
    v: [B, C, Q, G, M, V].
    log_a: [B, C, G, M, Q].
    h0: [B, G, M, K, V], or None: the first chunk then reads no state.
    segment: [B, C, Q] int32, one number per segment; h0 belongs to segment 0.
    last: whether the last chunk writes a state.

  Returns:
    y like v, and the last written state, [B, G, M, K, V].
  """
  dtype, wide = v.dtype, log_a.dtype
  # Of float32 matrices, with all their digits.
  precision = jax.lax.Precision.HIGHEST if dtype == wide else None
  product = functools.partial(jnp.einsum, preferred_element_type=wide, precision=precision)
  until = running_sums(log_a)
  # The segment of the last step of the previous chunk.
  entering = jnp.pad(segment[:, :-1, -1], ((0, 0), (1, 0)))[..., None]
  leaving = segment[:, :, -1:]

  def decay(sums, joined):
    """Returns exp of the sum of `sums` [B, C, G, M, ...]; 0 where not `joined` [B, C, ...]."""
    return jnp.exp(jnp.where(joined[:, :, None, None], sum(sums), -jnp.inf))

  # [B, C, G, M, t, s]
  steps = jnp.arange(v.shape[2])
  seen = (steps[:, None] >= steps) & (segment[..., :, None] == segment[..., None, :])
  within = decay([u[..., :, None] - u[..., None, :] for u in until], seen)
  scores = product("zctgn,zcsgn->zcgts", q, k)
  weights = (scores[:, :, :, None] * within).astype(dtype)
  y = product("zcgmts,zcsgmp->zctgmp", weights, v)

  def along(weight):
    """Reshapes [B, C, G, M, Q] to the axes of v."""
    return jnp.moveaxis(weight, -1, 2)[..., None]

  # The chunks that write a state, and the chunks that read one.
  writing = slice(None) if last else slice(None, -1)
  reading = slice(None) if h0 is not None else slice(1, None)
  kept = decay([u[..., -1:] for u in until], leaving == entering)[..., None]
  until_last = along(decay([u[..., -1:] - u for u in until], segment == leaving))
  written = (v * until_last).astype(dtype)
  states = product("zcsgn,zcsgmp->zcgmnp", k[:, writing], written[:, writing])
  if h0 is None:
    h0 = jnp.zeros_like(states, shape=(states.shape[0], *states.shape[2:]))

  def carry(h, inputs):
    kept, state = inputs
    h = kept * h + state
    return h, h

  inputs = jnp.moveaxis(kept[:, writing], 1, 0), jnp.moveaxis(states, 1, 0)
  h_last, after = jax.lax.scan(carry, h0, inputs)
  before = jnp.concatenate([h0[None], after])[: v.shape[1]][reading].astype(dtype)
  read = product("zctgn,czgmnp->zctgmp", q[:, reading], before)
  read *= along(decay(until, segment == entering))[:, reading]
  unread = v.shape[1] - read.shape[1]
  y += jnp.pad(read, ((0, 0), (unread, 0)) + ((0, 0),) * 4)
  return y.astype(dtype), h_last
