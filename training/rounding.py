"""Applies updates to low-precision parameters, with rounding to nearest or stochastic rounding.

Rounded to nearest, a bfloat16 parameter loses every update below 1/512 of it, and training stalls.
With stochastic rounding the updates are right on average (Gupta et al. 2015); with a float32 copy
they are exact (Micikevicius et al. 2018, section 3.1; see `training.optimizer.with_master_copy`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

MODES = ("nearest", "stochastic")
_DROPPED_BITS = 16  # bits of a float32 that bfloat16 lacks


def check(mode: str) -> None:
  """Raises ValueError for an unknown mode."""
  if mode not in MODES:
    raise ValueError(f"rounding={mode!r} is unknown: use one of {', '.join(MODES)}.")


def apply_updates(params: Any, updates: Any, *, mode: str, key: jax.Array) -> Any:
  """Adds updates to parameters, each in its parameter's dtype.

  Args:
    params: the parameters.
    updates: float32, the same tree.
    mode: one of `MODES`; parameters that are not bfloat16 are always rounded to nearest.
    key: random key of stochastic rounding, which does not depend on the sharding.
  """
  leaves, structure = jax.tree.flatten(params)
  summed = [
    p.astype(jnp.float32) + u for p, u in zip(leaves, jax.tree.leaves(updates), strict=True)
  ]
  return jax.tree.unflatten(
    structure,
    [
      stochastic(new, jax.random.fold_in(key, index))
      if mode == "stochastic" and old.dtype == jnp.bfloat16
      else new.astype(old.dtype)
      for index, (old, new) in enumerate(zip(leaves, summed, strict=True))
    ],
  )


def stochastic(x: jax.Array, key: jax.Array) -> jax.Array:
  """Rounds float32 stochastically to a neighbour in bfloat16, so that the mean is x.

  Args:
    x: float32, of any shape.
    key: a random key.

  Returns:
    bfloat16; bfloat16 values, infinities and NaNs are unchanged.
  """
  # The dropped bits are the distance to the neighbour nearer to zero: adding a uniform number
  # carries into the remaining bits with a probability proportional to that distance.
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  draw = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  rounded = jax.lax.bitcast_convert_type(
    ((bits + draw) >> _DROPPED_BITS).astype(jnp.uint16), jnp.bfloat16
  )
  return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))
