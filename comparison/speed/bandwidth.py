"""The rate at which the memory of the default device is read and written, and shares of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from comparison.speed import timing

# Larger than any cache.
_BYTES = 2**28
# A share of the floor above it is no noise: the data lay in a cache, or the rate is wrong.
MOST = 1.05


def measured(rounds: int = 7, size: int = _BYTES) -> float:
  """Bytes per second, of those read and those written.

  An array takes the place of itself, negated: its pages were touched before, which a copy's are
  not, and the first touch of a page on a CPU takes longer than the copy.

  Args:
    rounds: of which the median counts.
    size: bytes of the array; more than any cache holds by default.
  """
  held = jnp.ones((size // 4 // 1024, 1024), jnp.float32)
  negate = jax.jit(lambda x: -x, donate_argnums=0)

  def run():
    nonlocal held
    held = negate(held)
    return held

  seconds = timing.interleaved({"negate": run}, rounds)
  return 2 * held.nbytes / timing.medians(seconds)["negate"]


def share(moved: float, rate: float, seconds: float) -> float | None:
  """The share of the floor: the least time for some bytes over the time that was taken.

  None if it is above `MOST`: then memory was not what they moved through.
  """
  found = moved / rate / seconds
  return found if found <= MOST else None
