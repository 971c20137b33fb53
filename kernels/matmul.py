"""Products with weights whose gradients are laid out as the weights are.

JAX's own transpose rule computes the gradient of a weight transposed, `g^T x`, and turns it round
afterwards; XLA's CPU compiler then runs a slower product and a copy. Writing the three products of a
linear map out makes its gradient 1.1 to 2 times as fast there, and changes nothing on TPU and GPU.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, w: jax.Array, out_dtype: jnp.dtype | None = None) -> jax.Array:
  """Multiplies the last axis of x by a matrix, accumulating in float32.

  Args:
    x: [..., I].
    w: [I, O] in x's dtype.
    out_dtype: type of the result; x's if None.

  Returns:
    [..., O].
  """
  return _dot(x, w, ((x.ndim - 1,), (0,)), out_dtype or x.dtype)


def _matmul_forward(x, w, out_dtype):
  return matmul(x, w, out_dtype), (x, w)


def _matmul_backward(out_dtype, residuals, g):
  x, w = residuals
  g = g.astype(x.dtype)
  rows = tuple(range(x.ndim - 1))
  dx = _dot(g, w, ((g.ndim - 1,), (1,)), x.dtype)
  dw = _dot(x, g, (rows, rows), w.dtype)
  return dx, dw


matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def block_diagonal_matmul(x: jax.Array, w: jax.Array) -> jax.Array:
  """Multiplies the last axis of x by a block-diagonal matrix, accumulating in float32.

  Args:
    x: [B, T, R].
    w: [N, R / N, R / N] the diagonal blocks, in x's dtype.

  Returns:
    [B, T, R].
  """
  y = _dot(_in_blocks(x, w), w, ((3,), (1,)), x.dtype, batch=((2,), (0,)))
  return jnp.moveaxis(y, 0, 2).reshape(x.shape)


def _block_forward(x, w):
  return block_diagonal_matmul(x, w), (x, w)


def _block_backward(residuals, g):
  x, w = residuals
  g = _in_blocks(g, w)
  dx = _dot(g, w, ((3,), (2,)), x.dtype, batch=((2,), (0,)))
  dw = _dot(_in_blocks(x, w), g, ((0, 1), (0, 1)), w.dtype, batch=((2,), (2,)))
  return jnp.moveaxis(dx, 0, 2).reshape(x.shape), dw


block_diagonal_matmul.defvjp(_block_forward, _block_backward)


def _in_blocks(x: jax.Array, w: jax.Array) -> jax.Array:
  return x.reshape(*x.shape[:-1], w.shape[0], w.shape[1])


def _dot(x, y, contracting, dtype, batch=((), ())) -> jax.Array:
  accumulator = jnp.promote_types(x.dtype, jnp.float32)
  product = jax.lax.dot_general(x, y, (contracting, batch), preferred_element_type=accumulator)
  return product.astype(dtype)
