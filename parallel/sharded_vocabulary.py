"""Embedding look-up and softmax with the vocabulary split over devices.

Section 4.1 of the Griffin paper. In training logits are never gathered: devices exchange one number
per token and reduction.

The table may have more rows than ids, so that a mesh divides them. The padding rows after the last
id are never read, and their logits are left out or -inf.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from parallel import shards

AXIS = "vocab"


def padded(size: int, multiple: int) -> int:
  """Returns the number of rows for `size` ids: the next multiple."""
  return -(-size // multiple) * multiple


def take_row(table: jax.Array, ids: jax.Array) -> jax.Array:
  """Looks up rows of a table.

  Args:
    table: [V, D], or this device's part of V.
    ids: [B, T] int32.

  Returns:
    [B, T, D].
  """
  if shards.count(AXIS) == 1:
    return jnp.take(table, ids, axis=0)
  row, here = _place(ids, table.shape[0])
  return shards.reduce_from_tensor_parallel(
    jnp.where(here[..., None], jnp.take(table, row, axis=0), 0), AXIS
  )


def without_padding(logits: jax.Array, size: int) -> jax.Array:
  """Removes the padding from logits.

  Args:
    logits: [..., rows], or this device's part of the rows.
    size: number of ids; later rows are padding.

  Returns:
    [..., size]; for a device's part the same shape, with -inf for padding.
  """
  parts = shards.count(AXIS)
  if logits.shape[-1] * parts == size:
    return logits
  if parts == 1:
    return logits[..., :size]
  held = logits.shape[-1]
  column = lax.axis_index(shards.mesh_axes(AXIS)) * held + jnp.arange(held)
  return jnp.where(column < size, logits, -jnp.inf)


def logsumexp(logits: jax.Array) -> jax.Array:
  """Returns the log of the softmax's denominator: [B, T, V] (or this device's part) to [B, T]."""
  if shards.count(AXIS) == 1:
    return jax.nn.logsumexp(logits, axis=-1)
  peak = lax.pmax(lax.stop_gradient(logits.max(axis=-1)), shards.mesh_axes(AXIS))
  total = shards.reduce_from_tensor_parallel(
    jnp.sum(jnp.exp(logits - peak[..., None]), axis=-1), AXIS
  )
  return peak + jnp.log(total)


def pick(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the logit of each target: [B, T, V] (or this device's part) and [B, T] to [B, T]."""
  if shards.count(AXIS) == 1:
    return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  column, here = _place(targets, logits.shape[-1])
  found = jnp.take_along_axis(logits, column[..., None], axis=-1)[..., 0]
  return shards.reduce_from_tensor_parallel(jnp.where(here, found, 0), AXIS)


def whole(logits: jax.Array, size: int) -> jax.Array:
  """Gathers logits to sample from: this device's part of [..., rows] to [..., size]."""
  if shards.count(AXIS) == 1:
    return logits
  gathered = lax.all_gather(logits, shards.mesh_axes(AXIS), axis=logits.ndim - 1, tiled=True)
  return gathered[..., :size]


def _place(ids: jax.Array, held: int) -> tuple[jax.Array, jax.Array]:
  """Returns the index of ids in this device's part of `held` entries, and whether it has them."""
  row = ids - lax.axis_index(shards.mesh_axes(AXIS)) * held
  here = (row >= 0) & (row < held)
  return jnp.where(here, row, 0), here
