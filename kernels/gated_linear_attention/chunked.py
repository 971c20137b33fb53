"""Gated linear attention as products of matrices over chunks of time.

Within a chunk, the weights from step s to step t are a lower-triangular matrix, as in attention.
Between chunks, one state per chunk is carried.
"""

from __future__ import annotations

import jax

from kernels.gated_linear_attention import by_channel, by_head, reference


def gated_linear_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_a: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
  last: bool,
  chunk: int,
) -> tuple[jax.Array, jax.Array | None]:
  """See `kernels.gated_linear_attention.gated_linear_attention`."""
  if q.shape[1] == 1 and h0 is not None:
    run = reference.gated_linear_attention
  else:
    run = (by_head if log_a.ndim == 3 else by_channel).chunked
  return run(q, k, v, log_a, h0, reset, last, chunk)
