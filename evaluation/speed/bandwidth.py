"""The rate at which the memory of the default device is read and written."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from evaluation.speed import timing

# Larger than any cache.
_BYTES = 2**28


def measured(rounds: int = 7, array: jax.Array | None = None) -> float:
  """Bytes per second of a copy, those read and those written.

  Args:
    rounds: of which the median counts.
    array: what is copied; an array larger than any cache if None.
  """
  if array is None:
    array = jnp.ones((_BYTES // 4 // 1024, 1024), jnp.float32)
  copy = jax.jit(lambda x: x * 2)
  seconds = timing.interleaved({"copy": lambda: copy(array)}, rounds)
  return 2 * array.nbytes / timing.medians(seconds)["copy"]
