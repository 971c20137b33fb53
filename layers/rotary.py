"""Rotary position embedding."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryScaling:
  """Longer wavelengths, for rows longer than those of the first training.

  Without `original_length`, all wavelengths grow by the factor: position interpolation (Chen et al.
  2023, arXiv 2306.15595). With it, only those grow of which few fit into the original length: Llama
  3.1's rule (Grattafiori et al. 2024).

  Attributes:
    factor: the wavelengths' growth.
    original_length: tokens of the rows of the first training.
    low, high: wavelengths that fit fewer than `low` times into them grow by the whole factor, those
      that fit more than `high` times do not grow, and between the two frequencies are interpolated.
  """

  factor: float
  original_length: int | None = None
  low: float = 1.0
  high: float = 4.0

  def __call__(self, frequencies: jax.Array) -> jax.Array:
    """Maps frequencies, in radians per token, to lower ones."""
    factor, low, high = float(self.factor), float(self.low), float(self.high)
    if self.original_length is None:
      return frequencies / factor
    fits = float(self.original_length) * frequencies / (2 * math.pi)
    kept = jnp.clip((fits - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / factor)


def rotate(
  x: jax.Array,
  positions: jax.Array,
  *,
  fraction: float,
  base: float,
  scaling: RotaryScaling | None = None,
) -> jax.Array:
  """Rotates pairs of channels of each head by angles proportional to the position.

  Channel c of the rotated part is paired with channel c + half of it (Su et al. 2021, in the
  half-split form of GPT-NeoX).

  Args:
    x: [B, T, H, K] queries or keys.
    positions: [B, T] int32.
    fraction: share of the K channels that is rotated, from the front (RecurrentGemma: 0.5); an
      odd number of channels is rounded up, or down where K is odd and all are rotated.
    base: the longest wavelength is `2 pi base`, in tokens.
    scaling: changes the wavelengths; None leaves them.

  Returns:
    [B, T, H, K] in x's dtype; the angles are float32.
  """
  rotated = int(x.shape[-1] * fraction)
  half = min((rotated + 1) // 2, x.shape[-1] // 2)
  rotated = min(rotated, 2 * half)
  frequencies = float(base) ** (-2 * jnp.arange(half, dtype=jnp.float32) / rotated)
  if scaling is not None:
    frequencies = scaling(frequencies)
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first = x[..., :half].astype(jnp.float32)
  second = x[..., half : 2 * half].astype(jnp.float32)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)
