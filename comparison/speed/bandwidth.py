"""Measures the memory bandwidth of the default device, and shares of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from comparison.speed import timing

# Larger than any cache.
_BYTES = 2**28
# A larger share is not noise: the data was in a cache, or the rate is wrong.
MOST = 1.05


def measured(rounds: int = 7, size: int = _BYTES) -> float:
  """Measures bytes per second, read and written.

  An array is negated in place: a copy would have new pages, and the first touch of a page on a CPU
  takes longer than the copy.

  Args:
    rounds: number of rounds; the median counts.
    size: bytes of the array, by default larger than any cache.
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
  """Returns the share of the bandwidth: the least time for the bytes over the measured time.

  None if it is above `MOST`: then the bytes did not move through memory.
  """
  found = moved / rate / seconds
  return found if found <= MOST else None
