"""Matrix products with custom gradients in the layout of the weights.

JAX's own transpose rule computes the transposed gradient of a weight, `g^T x`, and transposes it
afterwards; XLA's CPU compiler then runs a slower product and a copy. The custom gradients make the
gradient of a linear map 1.1 to 2 times as fast on a CPU, and change nothing on TPU and GPU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from base.custom_gradient import custom_vjp
from kernels import platform


@custom_vjp(nondiff_argnums=(2,))
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


def matmul_transposed(x: jax.Array, w: jax.Array, out_dtype: jnp.dtype | None = None) -> jax.Array:
  """Multiplies by the transpose of w, as `matmul`: the logits of a tied embedding.

  On a CPU, for one token at a time, the weight is the first operand. If it were the second, XLA
  would transpose the whole weight at each token; this way it transposes only a few rows of x.

  Args:
    x: [B, T, I].
    w: [O, I] in x's dtype.
    out_dtype: type of the result; x's if None.

  Returns:
    [B, T, O].
  """
  if platform.target() == "cpu" and x.shape[1] == 1:
    return jnp.moveaxis(_dot(w, x, ((1,), (2,)), out_dtype or x.dtype), 0, 2)
  return matmul(x, w.T, out_dtype)


@jax.custom_vjp
def block_diagonal_linear(x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:
  """Multiplies the last axis of x by a block-diagonal matrix and adds a bias, in float32.

  For TPUs the blocks are sliced from the last axis one by one. There, call it inside shard_map with
  whole blocks on each device: slicing an axis that the compiler has sharded needs communication.

  Args:
    x: [B, T, R].
    w: [N, R / N, S / N] the diagonal blocks, in x's dtype.
    bias: [S] in x's dtype.

  Returns:
    [B, T, S].
  """
  return _block_product(x, w, 0, bias)


def _block_forward(x, w, bias):
  return block_diagonal_linear(x, w, bias), (x, w)


def _block_backward(residuals, g):
  x, w = residuals
  rows = ((0, 1), (0, 1))
  if _cuts_blocks(w):
    pairs = zip(_cut(x, w), _cut(g, w), strict=True)
    dw = jnp.stack([_dot(x_block, g_block, rows, w.dtype) for x_block, g_block in pairs])
  else:
    dw = _dot(_in_blocks(x, w), _in_blocks(g, w), rows, w.dtype, batch=((2,), (2,)))
  return _block_product(g, w, 1), dw, jnp.sum(g, axis=(0, 1))


block_diagonal_linear.defvjp(_block_forward, _block_backward)


def _block_product(x, w, axis, bias=None):
  """Multiplies each block of x by its block of w and adds the bias.

  Args:
    x: [B, T, R].
    w: [N, I, O] blocks.
    axis: contracted axis of each block: 0 for I, 1 for O.
    bias: [S], or None.
  """
  biases = [None] * w.shape[0] if bias is None else bias.reshape(w.shape[0], -1)
  if _cuts_blocks(w):
    parts = zip(_cut(x, w), w, biases, strict=True)
    y = [_dot(part, m, ((2,), (axis,)), x.dtype, bias=b) for part, m, b in parts]
    return jnp.concatenate(y, axis=2)
  bias = None if bias is None else biases[:, None, None]
  y = _dot(_in_blocks(x, w), w, ((3,), (axis + 1,)), x.dtype, batch=((2,), (0,)), bias=bias)
  return jnp.moveaxis(y, 0, 2).reshape(*x.shape[:-1], -1)


def _cuts_blocks(w: jax.Array) -> bool:
  """Whether blocks are sliced from the last axis, without a separate axis for blocks.

  A TPU tiles the last two axes, so [B, T, N, R / N] has another layout than [B, T, R], which costs
  two copies of the array per product. Slices at multiples of 128 channels are free, and each
  product writes into its part of the result.
  """
  return platform.target() == "tpu" and all(size % 128 == 0 for size in w.shape[1:])


def _cut(x: jax.Array, w: jax.Array) -> list[jax.Array]:
  return jnp.split(x, w.shape[0], axis=-1)


def _in_blocks(x: jax.Array, w: jax.Array) -> jax.Array:
  return x.reshape(*x.shape[:-1], w.shape[0], -1)


def _dot(x, y, contracting, dtype, batch=((), ()), bias=None) -> jax.Array:
  accumulator = jnp.promote_types(x.dtype, jnp.float32)
  product = jax.lax.dot_general(x, y, (contracting, batch), preferred_element_type=accumulator)
  if bias is not None:
    product += bias.astype(accumulator)
  return product.astype(dtype)
