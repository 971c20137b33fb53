"""Token embedding, shared with the output or not."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.matmul import matmul, matmul_transposed
from layers.linear import scaled_normal
from layers.parameter import parameter
from parallel import sharded_vocabulary, shards


class Embedding(nn.Module):
  """One matrix [V, D] that embeds tokens and, transposed, gives their logits.

  Attributes:
    vocab_size, width: V and D.
    vocab_multiple: the matrix has a multiple of this many rows; those behind the last id stay zero.
    scale: factor on the embedded tokens (RecurrentGemma: sqrt(D)); the logits do not see it.
    fan_in: entries start with variance 1 / fan_in; None is D, with which the normalised last hidden
      state gives logits of variance 1.
    dtype: type of the embedded tokens and of the logits' matrix product.
  """

  vocab_size: int
  width: int
  vocab_multiple: int = 1
  scale: float = 1.0
  fan_in: int | None = None
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.embedding = parameter(
      self,
      "embedding",
      _padded_with_zeros(
        nn.initializers.variance_scaling(
          self.width / (self.fan_in or self.width), "fan_in", "normal", in_axis=1, out_axis=0
        ),
        self.vocab_size,
        axis=0,
      ),
      ("vocab", "embed"),
      (
        shards.local(sharded_vocabulary.padded(self.vocab_size, self.vocab_multiple), "vocab"),
        self.width,
      ),
    )

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Maps tokens [B, T] to [B, T, D]."""
    x = sharded_vocabulary.take_row(self.embedding, tokens)
    return x if self.scale == 1.0 else x * jnp.asarray(self.scale, self.dtype)

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps [B, T, D] to float32 logits [B, T, rows].

    To a shard of them where the vocabulary is split.

    What padding gives is to be left out; see `sharded_vocabulary.without_padding`.
    """
    x = shards.copy_to_tensor_parallel(x.astype(self.dtype), "vocab")
    return matmul_transposed(x, self.embedding, jnp.float32)


class OutputHead(nn.Module):
  """A matrix [D, V] of its own that gives the logits, where the embedding's does not.

  Attributes:
    vocab_size, width: V and D.
    vocab_multiple: as in `Embedding`, of the matrix's columns.
    fan_in: as in `Embedding`.
    dtype: type of the matrix product's operands.
  """

  vocab_size: int
  width: int
  vocab_multiple: int = 1
  fan_in: int | None = None
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  def setup(self):
    columns = sharded_vocabulary.padded(self.vocab_size, self.vocab_multiple)
    kernel = parameter(
      self,
      "kernel",
      _padded_with_zeros(
        scaled_normal(self.width / (self.fan_in or self.width)), self.vocab_size, axis=1
      ),
      ("embed", "vocab"),
      (self.width, shards.local(columns, "vocab")),
    )
    # Exact, and undone below: pieces of the logits then add up their gradients in float32.
    self.kernel = jnp.asarray(kernel, jnp.float32)

  def __call__(self, x: jax.Array) -> jax.Array:
    """As `Embedding.logits`."""
    x = shards.copy_to_tensor_parallel(x.astype(self.dtype), "vocab")
    return matmul(x, jnp.asarray(self.kernel, self.dtype), jnp.float32)


def _padded_with_zeros(initializer, size: int, axis: int) -> nn.initializers.Initializer:
  """Draws the first `size` entries of an axis as if there were no more; the others are 0."""

  def initialize(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    # A device's part may be smaller; of it only the shape is asked for.
    drawn = [min(n, size) if i == axis else n for i, n in enumerate(shape)]
    padding = [(0, n - m) for n, m in zip(shape, drawn, strict=True)]
    return jnp.pad(initializer(key, tuple(drawn), dtype), padding)

  return initialize
