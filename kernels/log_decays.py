"""Sums of logarithms of decays whose differences keep their digits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# The exponential of this and of anything below is zero in float32.
_NOTHING = -128.0


def running_sums(log_a: jax.Array) -> list[jax.Array]:
  """Returns running sums of log a along the last axis, in two parts.

  The first part sums multiples of 1/256, which is exact up to a sum of 65,536. The second part sums
  the rest. Differences of the sums then keep all digits; otherwise, the decay between neighbouring
  steps would have the error of the whole sum. For the same reason, a log a that leaves nothing of a
  state counts as -128, however small it is.
  """
  log_a = jnp.maximum(log_a, _NOTHING)
  coarse = jnp.round(log_a * 256) / 256
  return [jnp.cumsum(part, axis=-1) for part in (coarse, log_a - coarse)]
