"""Tiles in a TPU's own memory: their products, and inverses of triangular matrices.

Functions that multiply matrices are generators that yield after every product. `together` runs
those of several heads in turns: where one waits for the result of a product, the others go on.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

F32 = jnp.float32
# Rows of the blocks that are inverted by substitution.
BASE = 16
Result = TypeVar("Result")
Stages = Generator[None, None, Result]


def together(heads: Sequence[Stages[Result]]) -> list[Result]:
  """Runs generators of equally many stages in turns and returns their results."""
  while True:
    done = []
    for head in heads:
      try:
        next(head)
      except StopIteration as stop:
        done.append(stop.value)
    if done:
      return done


def product(left: jax.Array, right: jax.Array, contract: tuple[int, int] = (1, 0)) -> jax.Array:
  """A product of matrices with sums in float32; of float32 matrices, with all their digits.

  Args:
    left, right: two axes each, in one dtype.
    contract: the axis of each that is summed over.
  """
  dimensions = (((contract[0],), (contract[1],)), ((), ()))
  precision = lax.Precision.HIGHEST if left.dtype == F32 else None
  return lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=F32)


def stacked(*arrays: jax.Array) -> jax.Array:
  """The rows of all arrays, one array after the other."""
  return jnp.concatenate(arrays, axis=0)


def indices(size: int) -> tuple[jax.Array, jax.Array]:
  """Row and column of every entry of a [size, size] matrix."""
  rows, columns = (lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
  return rows, columns


def column(row: jax.Array) -> jax.Array:
  """[1, C] as [C, 1]."""
  rows, columns = indices(row.shape[1])
  return jnp.sum(jnp.where(rows == columns, row, 0), axis=1, keepdims=True)


def row_of(values: jax.Array) -> jax.Array:
  """[C, 1] as [1, C]."""
  rows, columns = indices(values.shape[0])
  return jnp.sum(jnp.where(rows == columns, values, 0), axis=0, keepdims=True)


def pairs(size: int, half: int) -> jax.Array:
  """[size, size]: whether row and column are in the two halves of a block of 2 `half` rows."""
  rows, columns = indices(size)
  bits = rows ^ columns
  return (bits >= half) & (bits < 2 * half)


def _substituted(a: jax.Array, size: int) -> Stages[jax.Array]:
  """`(I + A)^-1` of the diagonal blocks of so many rows, all else zero: [C, C].

  Row by row, on whole registers: no row waits for a product of matrices.
  """
  rows, columns = indices(a.shape[0])
  unit = jnp.where(rows == columns, 1.0, 0.0)
  starts = range(0, a.shape[0], size)
  blocks = [unit[start : start + size] for start in starts]
  for row in range(size - 1):
    for i, start in enumerate(starts):
      known = a[start : start + size, start + row : start + row + 1]
      blocks[i] -= known * blocks[i][row : row + 1]
    yield
  return stacked(*blocks)


def _close_product(left: jax.Array, right: jax.Array, dtype) -> jax.Array:
  """A product of float32 matrices: with all digits, or with 16 bits where bfloat16 reads it."""
  if dtype == F32:
    return product(left, right)
  (high, low), (other_high, other_low) = (_split(x) for x in (left, right))
  return product(high, other_high) + (product(high, other_low) + product(low, other_high))


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Two bfloat16 arrays that add up to x, nearly."""
  high = x.astype(jnp.bfloat16)
  return high, (x - high.astype(F32)).astype(jnp.bfloat16)


def unit_lower_inverse(a: jax.Array, dtype) -> Stages[jax.Array]:
  """`(I + A)^-1` of a strictly lower triangular A [C, C] float32, for products in a type.

  Blocks are inverted by substitution and joined two by two as in `kernels.delta_rule.triangular`,
  all pairs of a size in one product of whole matrices: with X, the inverses of the blocks, and L,
  what is left of A between the two blocks of each pair, `X - X L X`.
  """
  half = min(BASE, a.shape[0])
  inverse = yield from _substituted(a, half)
  while half < a.shape[0]:
    below = _close_product(jnp.where(pairs(a.shape[0], half), a, 0), inverse, dtype)
    yield
    inverse -= _close_product(inverse, below, dtype)
    yield
    half *= 2
  return inverse
