"""Products of matrices whose sums are float32 whatever their operands are."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def wide_product(subscripts: str, left: jax.Array, right: jax.Array, wide: jnp.dtype) -> jax.Array:
  """A product with sums and result in a wide type; of matrices in it, with all their digits.

  Args:
    subscripts: of `jnp.einsum`.
    left, right: arrays of one type.
    wide: float32 (float64 in references).
  """
  precision = jax.lax.Precision.HIGHEST if left.dtype == wide else None
  return jnp.einsum(subscripts, left, right, preferred_element_type=wide, precision=precision)
