"""Draws the next token from logits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
  """How to choose among the next tokens.

  Attributes:
    temperature: divides the logits; 0 always takes the likeliest token.
    top_k: keep the k likeliest tokens; None keeps all.
    top_p: then keep the fewest tokens whose probabilities sum to at least this; 1 keeps all.

  Raises:
    ValueError: a value is out of range.
  """

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float = 1.0

  def __post_init__(self):
    if self.temperature < 0:
      raise ValueError(f"temperature={self.temperature} must be at least 0 (0 is greedy).")
    if self.top_k is not None and self.top_k < 1:
      raise ValueError(f"top_k={self.top_k} must be at least 1, or None to keep all tokens.")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p={self.top_p} must be in (0, 1]; 1 keeps all tokens.")

  def __call__(self, logits: jax.Array, keys: jax.Array) -> jax.Array:
    """Chooses one token per row.

    Args:
      logits: [B, V] float32; -inf forbids a token.
      keys: [B] random keys, one per row: a row's choice depends on its own logits and key alone.

    Returns:
      [B] int32.
    """
    if self.temperature == 0:
      return _largest(logits)
    logits = self._truncate(logits / self.temperature)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
    return _largest(logits + noise)

  def _truncate(self, logits: jax.Array) -> jax.Array:
    """Sets the logits of tokens that are not to be drawn to -inf."""
    if self.top_k is not None and self.top_k < logits.shape[-1]:
      least = jax.lax.top_k(logits, self.top_k)[0][:, -1:]
      logits = jnp.where(logits < least, -jnp.inf, logits)
    if self.top_p < 1:
      descending = jnp.sort(logits, axis=-1, descending=True)
      probabilities = jax.nn.softmax(descending, axis=-1)
      # A token stays if those before it do not reach top_p yet: the first one always does.
      before = jnp.cumsum(probabilities, axis=-1) - probabilities
      kept = jnp.where(before < self.top_p, descending, jnp.inf)
      logits = jnp.where(logits < kept.min(axis=-1, keepdims=True), -jnp.inf, logits)
    return logits


def _largest(x: jax.Array) -> jax.Array:
  """The first index of the largest value, or of NaN, per row: [B, V] to [B] int32.

  As `argmax` does; but XLA's CPU compiler does not vectorise a search that carries value and index.
  """
  largest = jnp.max(x, axis=-1, keepdims=True)
  index = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  return jnp.min(jnp.where((x == largest) | jnp.isnan(x), index, x.shape[1]), axis=-1)
