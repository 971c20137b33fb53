"""Root-mean-square normalisation."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers.parameter import parameter


class RMSNorm(nn.Module):
  """Divides by the root mean square over the last axis and scales each channel.

  Source: Zhang and Sennrich 2019; used by section 2 of the Griffin paper.

  Attributes:
    epsilon: added to the mean square.
    zero_centered: the parameter holds scale - 1 (as RecurrentGemma stores it) and starts at zero.
    dtype: type of the result; the arithmetic is float32.
    param_dtype: type of the stored scale.
  """

  epsilon: float = 1e-6
  zero_centered: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    initializer = nn.initializers.zeros if self.zero_centered else nn.initializers.ones
    scale = parameter(
      self, "scale", initializer, ("embed",), x.shape[-1:], self.param_dtype, jnp.float32
    )
    if self.zero_centered:
      scale = 1.0 + scale
    return _normalize(x, scale, self.epsilon).astype(self.dtype)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def _normalize(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
  """The arithmetic, in float32; the backward pass keeps x in its own type and nothing else."""
  x = x.astype(jnp.float32)
  inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)
  return x * inverse_rms * scale
