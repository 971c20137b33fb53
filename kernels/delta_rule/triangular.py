"""Inverses of unit lower triangular matrices, in products of blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.delta_rule import inverse_base


@jax.custom_vjp
def unit_lower_inverse(a: jax.Array) -> jax.Array:
  """Returns `(I + A)^-1`.

  The inverse of the delta rule's matrix has entries of at most max(beta) in size, each the product
  of one key, the corrections between, and another key. So blocks are inverted by substitution and
  joined two by two, as `[[S, 0], [-T A21 S, T]]`, where every array is a part of the inverse or of
  A. Powers of A, which a Neumann series adds up, would have entries of binomial size.

  Args:
    a: [..., R, R] float32, strictly lower triangular.

  Returns:
    [..., R, R] float32; its gradient is that of the strictly lower triangle.
  """
  rows = a.shape[-1]
  size = inverse_base(rows)
  inverse = _substituted(_diagonal_blocks(a, size))
  while size < rows:
    pairs = inverse.reshape(*a.shape[:-2], -1, 2, size, size)
    first, second = pairs[..., 0, :, :], pairs[..., 1, :, :]
    below = _diagonal_blocks(a, 2 * size)[..., size:, :size]
    below = -_matmul(second, _matmul(below, first))
    upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
    inverse = jnp.concatenate([upper, jnp.concatenate([below, second], axis=-1)], axis=-2)
    size *= 2
  return inverse.reshape(a.shape)


def _forward(a):
  inverse = unit_lower_inverse(a)
  return inverse, inverse


def _backward(inverse, g):
  transposed = jnp.swapaxes(inverse, -1, -2)
  return (-jnp.tril(_matmul(transposed, _matmul(g, transposed)), -1),)


unit_lower_inverse.defvjp(_forward, _backward)


def _matmul(left, right):
  return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _diagonal_blocks(a, size):
  """[..., R / size, size, size]."""
  count = a.shape[-1] // size
  blocks = a.reshape(*a.shape[:-2], count, size, count, size)
  return jnp.stack([blocks[..., i, :, i, :] for i in range(count)], axis=-3)


def _substituted(a):
  """Inverts small matrices row by row, all of them at once, in the last axis."""
  lead, size = a.shape[:-2], a.shape[-1]
  a = jnp.moveaxis(a.reshape(-1, size, size), 0, -1)
  unit = jnp.eye(size, dtype=a.dtype)
  inverse = jnp.broadcast_to(unit[0, None, :, None], (1, *a.shape[1:]))
  for row in range(1, size):
    known = jnp.sum(a[row, :row, None] * inverse, axis=0)
    inverse = jnp.concatenate([inverse, (unit[row, :, None] - known)[None]])
  return jnp.moveaxis(inverse, -1, 0).reshape(*lead, size, size)
