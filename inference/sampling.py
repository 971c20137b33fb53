"""Draws the next token from logits."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from base.ranges import Count, NotNegative, Share

_FLOAT32 = np.finfo(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
  """Draws the next token by temperature, top-k and top-p.

  Attributes:
    temperature: divides the logits; 0 always takes the most likely token.
    top_k: keep the k most likely tokens; None keeps all.
    top_p: then keep the fewest tokens with at least this total probability; 1 keeps all.

  Of equally likely tokens, those with lower ids are kept.

  Raises:
    ValueError: a value is out of range. The temperature must be in the range of float32.
  """

  temperature: NotNegative = 1.0
  top_k: Count | None = None
  top_p: Share = 1.0

  def __post_init__(self):
    least, most = float(_FLOAT32.tiny), float(_FLOAT32.max)
    # Written so that NaN is out of range.
    if not (self.temperature == 0 or least <= self.temperature <= most):
      # float32's range is mentioned only if it is exceeded.
      ends = f"from {least:.2g} to {most:.2g}" if self.temperature > 0 else "above 0"
      raise ValueError(
        f"temperature={self.temperature} must be {ends}, or 0 to take the most likely token."
      )
    if self.top_k is not None and not (self.top_k >= 1 and self.top_k == math.floor(self.top_k)):
      raise ValueError(
        f"top_k={self.top_k} must be a whole number of at least 1, or None to keep all tokens."
      )
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p={self.top_p} must be in (0, 1]; 1 keeps all tokens.")

  def __call__(self, logits: jax.Array, keys: jax.Array) -> jax.Array:
    """Draws a token per row.

    Args:
      logits: [B, V] float32; -inf forbids a token, but not all of a row.
      keys: [B] random keys: a row's token depends only on its logits and key.

    Returns:
      [B] int32.
    """
    if self.temperature == 0:
      return _largest(logits)
    allowed = logits != -jnp.inf
    finite = jnp.nan_to_num(logits, nan=_FLOAT32.min, posinf=_FLOAT32.max, neginf=_FLOAT32.min)
    peak = jnp.max(jnp.where(allowed, finite, -jnp.inf), axis=-1, keepdims=True)
    # The most likely token is at 0 for any temperature, and the others below: nothing overflows to
    # +inf, and the most likely never to -inf.
    scaled = jnp.where(allowed, (finite - peak) / jnp.float32(self.temperature), -jnp.inf)
    scaled = self._truncate(scaled)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
    return _largest(scaled + noise)

  def _truncate(self, logits: jax.Array) -> jax.Array:
    """Sets the logits of tokens outside top-k and top-p to -inf."""
    size = logits.shape[-1]
    if self.top_k is not None and self.top_k < size:
      largest = jax.lax.top_k(logits, int(self.top_k))[0]
      logits = _keep(logits, largest[:, -1:], jnp.int32(self.top_k))
    if np.float32(self.top_p) < 1:
      descending = jnp.sort(logits, axis=-1, descending=True)
      sums = jnp.cumsum(jax.nn.softmax(descending, axis=-1), axis=-1)
      # The first token is always kept; the sum of all may miss top_p by rounding.
      below = jnp.sum(sums < self.top_p, axis=-1, keepdims=True)
      count = jnp.minimum(below + 1, size)
      logits = _keep(logits, jnp.take_along_axis(descending, count - 1, axis=-1), count)
    return logits


def _keep(logits: jax.Array, least: jax.Array, count: jax.Array) -> jax.Array:
  """Keeps the `count` largest of [B, V]; the smallest kept value is `least` [B, 1]."""
  above, equal = logits > least, logits == least
  room = count - jnp.sum(above, axis=-1, keepdims=True)
  kept = above | (equal & (jnp.cumsum(equal, axis=-1) <= room))
  return jnp.where(kept, logits, -jnp.inf)


def _largest(x: jax.Array) -> jax.Array:
  """Returns the first index of the largest value, or of NaN, per row: [B, V] to [B] int32.

  Equal to `argmax`, which XLA's CPU compiler does not vectorise.
  """
  largest = jnp.max(x, axis=-1, keepdims=True)
  index = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  return jnp.min(jnp.where((x == largest) | jnp.isnan(x), index, x.shape[1]), axis=-1)
