"""Rotary position embedding."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotate(x: jax.Array, positions: jax.Array, *, fraction: float, base: float) -> jax.Array:
  """Rotates pairs of channels of each head by angles proportional to the position.

  Channel c of the rotated part is paired with channel c + half of it (Su et al. 2021, in the
  half-split form of GPT-NeoX).

  Args:
    x: [B, T, H, K] queries or keys.
    positions: [B, T] int32.
    fraction: share of the K channels that is rotated, from the front (RecurrentGemma: 0.5).
    base: the longest wavelength is `2 pi base`, in tokens.

  Returns:
    [B, T, H, K] in x's dtype; the angles are float32.
  """
  rotated = int(x.shape[-1] * fraction)
  half = rotated // 2
  frequencies = float(base) ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first = x[..., :half].astype(jnp.float32)
  second = x[..., half:rotated].astype(jnp.float32)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return jnp.concatenate([turned.astype(x.dtype), x[..., rotated:]], axis=-1)
