"""The recurrence as products of matrices over chunks of time (section 6 of Dao and Gu 2024).

Within a chunk, the weights from step s to step t are a lower-triangular matrix, as in attention.
Between chunks, one state per chunk is carried. All sums over time are matrix products.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels import checkpoint_names
from kernels.log_decays import running_sums
from kernels.ssd import reference


def ssd(
  x: jax.Array,
  log_a: jax.Array,
  b: jax.Array,
  c: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
  last: bool,
  chunk: int,
) -> tuple[jax.Array, jax.Array | None]:
  """See `kernels.ssd.ssd`."""
  batch, length, heads, head_dim = x.shape
  if length == 1 and h0 is not None:
    return reference.ssd(x, log_a, b, c, h0, reset, last, chunk)
  groups, state_size = b.shape[2:]
  chunk = min(chunk, length)
  count = -(-length // chunk)
  starts = jnp.zeros((batch, length), bool) if reset is None else reset

  def cut(v):
    """Pads and reshapes [B, T, ...] to [B, C, Q, ...].

    The padding steps decay nothing, write nothing and start no segment.
    """
    v = jnp.pad(v, ((0, 0), (0, count * chunk - length)) + ((0, 0),) * (v.ndim - 2))
    return v.reshape(batch, count, chunk, *v.shape[2:])

  if h0 is not None:
    h0 = h0.astype(log_a.dtype).reshape(batch, groups, -1, state_size, head_dim)
  y, h_last = _chunks(
    cut(x.reshape(batch, length, groups, -1, head_dim)),
    jnp.moveaxis(cut(log_a.reshape(batch, length, groups, -1)), 2, -1),
    cut(b),
    cut(c),
    h0,
    jnp.cumsum(cut(starts).reshape(batch, -1), axis=1).reshape(batch, count, chunk),
    last,
  )
  y = y.reshape(batch, count * chunk, heads, head_dim)[:, :length]
  if not last:
    return *checkpoint_names.recurrence(y), None
  return checkpoint_names.recurrence(y, h_last.reshape(batch, heads, state_size, head_dim))


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=6)
def _chunks(x, log_a, b, c, h0, segment, last):
  """Computes all chunks; the backward pass keeps the arguments and computes the matrices again.

  Axes: B rows, C chunks, Q (t, s) steps, G groups, M heads of a group, N and P of the state.

  Args:
    x: [B, C, Q, G, M, P].
    log_a: [B, C, G, M, Q].
    b, c: [B, C, Q, G, N].
    h0: [B, G, M, N, P], or None: the first chunk then reads no state.
    segment: [B, C, Q] int32, one number per segment; h0 belongs to segment 0.
    last: whether the last chunk writes a state.

  Returns:
    y like x, and the last written state, [B, G, M, N, P].
  """
  dtype = x.dtype
  product = functools.partial(jnp.einsum, preferred_element_type=log_a.dtype)
  until = running_sums(log_a)
  # The segment of the last step of the previous chunk.
  entering = jnp.pad(segment[:, :-1, -1], ((0, 0), (1, 0)))[..., None]
  leaving = segment[:, :, -1:]

  def decay(sums, joined):
    """Returns exp of the sum of `sums` [B, C, G, M, ...]; 0 where not `joined` [B, C, ...]."""
    return jnp.exp(jnp.where(joined[:, :, None, None], sum(sums), -jnp.inf))

  # [B, C, G, M, t, s]
  steps = jnp.arange(x.shape[2])
  seen = (steps[:, None] >= steps) & (segment[..., :, None] == segment[..., None, :])
  within = decay([u[..., :, None] - u[..., None, :] for u in until], seen)
  scores = product("zctgn,zcsgn->zcgts", c, b)
  weights = (scores[:, :, :, None] * within).astype(dtype)
  y = product("zcgmts,zcsgmp->zctgmp", weights, x)

  def along(weight):
    """Reshapes [B, C, G, M, Q] to the axes of x."""
    return jnp.moveaxis(weight, -1, 2)[..., None]

  # The chunks that write a state, and the chunks that read one.
  writing = slice(None) if last else slice(None, -1)
  reading = slice(None) if h0 is not None else slice(1, None)
  kept = decay([u[..., -1:] for u in until], leaving == entering)[..., None]
  until_last = along(decay([u[..., -1:] - u for u in until], segment == leaving))
  written = (x * until_last).astype(dtype)
  states = product("zcsgn,zcsgmp->zcgmnp", b[:, writing], written[:, writing])
  if h0 is None:
    h0 = jnp.zeros_like(states, shape=(states.shape[0], *states.shape[2:]))

  def carry(h, inputs):
    kept, state = inputs
    h = kept * h + state
    return h, h

  inputs = jnp.moveaxis(kept[:, writing], 1, 0), jnp.moveaxis(states, 1, 0)
  h_last, after = jax.lax.scan(carry, h0, inputs)
  before = jnp.concatenate([h0[None], after])[: x.shape[1]][reading].astype(dtype)
  read = product("zctgn,czgmnp->zctgmp", c[:, reading], before)
  read *= along(decay(until, segment == entering))[:, reading]
  unread = x.shape[1] - read.shape[1]
  y += jnp.pad(read, ((0, 0), (unread, 0)) + ((0, 0),) * 4)
  return y.astype(dtype), h_last
