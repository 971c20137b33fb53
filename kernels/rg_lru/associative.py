"""The gated step as gates and an associative scan, differentiated by JAX.

The scan is that of `kernels.linear_scan.associative`.
"""

from __future__ import annotations

import jax

from kernels.linear_scan.associative import scan_decayed
from kernels.rg_lru.gates import gated


def rg_lru(
  x: jax.Array,
  gate_a: jax.Array,
  gate_x: jax.Array,
  log_decay: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """See `kernels.rg_lru.rg_lru`."""
  a, inputs = gated(x, gate_a, gate_x, log_decay, reset)
  h, h_last = scan_decayed(inputs, a, h0, False)
  return h.astype(x.dtype), h_last
