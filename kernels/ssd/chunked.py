"""The recurrence as products of matrices over chunks of time (section 6 of Dao and Gu 2024).

Within a chunk, what step s gives to step t is a lower-triangular matrix, as in attention; between chunks
one state per chunk is carried. All sums over time are products that a matrix unit runs.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels import costly
from kernels.ssd import reference


def ssd(
  x: jax.Array,
  log_a: jax.Array,
  b: jax.Array,
  c: jax.Array,
  h0: jax.Array,
  reset: jax.Array | None,
  chunk: int,
) -> tuple[jax.Array, jax.Array]:
  """See `kernels.ssd.ssd`."""
  batch, length, heads, head_dim = x.shape
  if length == 1:
    return reference.ssd(x, log_a, b, c, h0, reset, chunk)
  groups, state_size = b.shape[2:]
  chunk = min(chunk, length)
  count = -(-length // chunk)
  starts = jnp.zeros((batch, length), bool) if reset is None else reset

  def cut(v):
    """[B, T, ...] to [B, C, Q, ...]; added steps decay nothing, write nothing and start no segment."""
    v = jnp.pad(v, ((0, 0), (0, count * chunk - length)) + ((0, 0),) * (v.ndim - 2))
    return v.reshape(batch, count, chunk, *v.shape[2:])

  y, h_last = _chunks(
    cut(x.reshape(batch, length, groups, -1, head_dim)),
    jnp.moveaxis(cut(log_a.reshape(batch, length, groups, -1)), 2, -1),
    cut(b),
    cut(c),
    h0.astype(log_a.dtype).reshape(batch, groups, -1, state_size, head_dim),
    jnp.cumsum(cut(starts).reshape(batch, -1), axis=1).reshape(batch, count, chunk),
  )
  y = y.reshape(batch, count * chunk, heads, head_dim)[:, :length]
  return costly.recurrence(y, h_last.reshape(batch, heads, state_size, head_dim))


@functools.partial(jax.checkpoint, prevent_cse=False)
def _chunks(x, log_a, b, c, h0, segment):
  """All chunks; the backward pass keeps the arguments and makes the matrices again.

  Axes: B rows, C chunks, Q (t, s) steps, G groups, M heads of a group, N and P of the state.

  Args:
    x: [B, C, Q, G, M, P]; log_a: [B, C, G, M, Q]; b, c: [B, C, Q, G, N].
    h0: [B, G, M, N, P].
    segment: [B, C, Q] int32, one number per segment; 0 is the one that h0 belongs to.

  Returns:
    y like x, and the last state like h0.
  """
  dtype = x.dtype
  product = functools.partial(jnp.einsum, preferred_element_type=log_a.dtype)
  until = _sums(log_a)
  # The segment of the last step of the chunk before.
  entering = jnp.pad(segment[:, :-1, -1], ((0, 0), (1, 0)))[..., None]
  leaving = segment[:, :, -1:]

  def decay(sums, joined):
    """exp of the sum of its parts [B, C, G, M, ...], 0 where steps are not `joined` [B, C, ...]."""
    return jnp.exp(jnp.where(joined[:, :, None, None], sum(sums), -jnp.inf))

  # [B, C, G, M, t, s]
  steps = jnp.arange(x.shape[2])
  seen = (steps[:, None] >= steps) & (segment[..., :, None] == segment[..., None, :])
  within = decay([u[..., :, None] - u[..., None, :] for u in until], seen)
  scores = product("zctgn,zcsgn->zcgts", c, b)
  weights = (scores[:, :, :, None] * within).astype(dtype)
  y = product("zcgmts,zcsgmp->zctgmp", weights, x)

  def along(weight):
    """[B, C, G, M, Q] to the axes of x."""
    return jnp.moveaxis(weight, -1, 2)[..., None]

  until_last = decay([u[..., -1:] - u for u in until], segment == leaving)
  states = product("zcsgn,zcsgmp->zcgmnp", b, (x * along(until_last)).astype(dtype))
  kept = decay([u[..., -1:] for u in until], leaving == entering)[..., None]

  def carry(h, inputs):
    kept, state = inputs
    return kept * h + state, h

  inputs = jnp.moveaxis(kept, 1, 0), jnp.moveaxis(states, 1, 0)
  h_last, before = jax.lax.scan(carry, h0, inputs)
  read = product("zctgn,czgmnp->zctgmp", c, before.astype(dtype))
  y = y + read * along(decay(until, segment == entering))
  return y.astype(dtype), h_last


def _sums(log_a: jax.Array) -> list[jax.Array]:
  """Running sums of log a along a chunk, in two parts whose differences keep all digits.

  The first part adds multiples of 1/256, which is exact up to a sum of 65,536; the second what is left.
  Else a decay between neighbours would have the error of the whole sum.
  """
  coarse = jnp.round(log_a * 256) / 256
  return [jnp.cumsum(part, axis=-1) for part in (coarse, log_a - coarse)]
