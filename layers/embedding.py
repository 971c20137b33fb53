"""Token embedding, shared with the output."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.matmul import matmul


class Embedding(nn.Module):
  """One matrix [V, D] that embeds tokens and, transposed, gives their logits.

  Attributes:
    vocab_size, width: V and D.
    scale: factor on the embedded tokens (RecurrentGemma: sqrt(D)); the logits do not see it.
    dtype: type of the embedded tokens and of the logits' matrix product.
  """

  vocab_size: int
  width: int
  scale: float = 1.0
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.embedding = self.param(
      "embedding",
      nn.with_logical_partitioning(
        # Variance 1/D: the normalised last hidden state then gives logits of variance 1.
        nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0),
        ("vocab", "embed"),
      ),
      (self.vocab_size, self.width),
      self.param_dtype,
    )

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Maps tokens [B, T] to [B, T, D]."""
    x = jnp.take(self.embedding.astype(self.dtype), tokens, axis=0)
    return x if self.scale == 1.0 else x * jnp.asarray(self.scale, self.dtype)

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps [B, T, D] to float32 logits [B, T, V]."""
    matrix = self.embedding.astype(self.dtype).T
    return matmul(x.astype(self.dtype), matrix, jnp.float32)
