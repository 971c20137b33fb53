"""Token embedding, shared with the output or not."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.matmul import matmul, matmul_transposed
from layers.linear import scaled_normal
from layers.parameter import parameter
from parallel import shards, vocabulary


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
    self.embedding = parameter(
      self,
      "embedding",
      # Variance 1/D: the normalised last hidden state then gives logits of variance 1.
      nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0),
      ("vocab", "embed"),
      (shards.local(self.vocab_size, "vocab"), self.width),
      self.param_dtype,
      self.dtype,
    )

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Maps tokens [B, T] to [B, T, D]."""
    x = vocabulary.take_row(self.embedding, tokens)
    return x if self.scale == 1.0 else x * jnp.asarray(self.scale, self.dtype)

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps [B, T, D] to float32 logits [B, T, V]; to a shard of them where the vocabulary is split."""
    x = shards.enter(x.astype(self.dtype), "vocab")
    return matmul_transposed(x, self.embedding, jnp.float32)


class OutputHead(nn.Module):
  """A matrix [D, V] of its own that gives the logits, where the embedding's does not.

  Attributes:
    vocab_size: V.
    dtype: type of the matrix product's operands.
  """

  vocab_size: int
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """As `Embedding.logits`."""
    x = shards.enter(x.astype(self.dtype), "vocab")
    shape = (x.shape[-1], shards.local(self.vocab_size, "vocab"))
    kinds = self.param_dtype, self.dtype
    kernel = parameter(self, "kernel", scaled_normal(1.0), ("embed", "vocab"), shape, *kinds)
    return matmul(x, kernel, jnp.float32)
