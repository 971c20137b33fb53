"""The recurrence as `lax.associative_scan`: logarithmic depth, in plain XLA, for any platform."""

from __future__ import annotations

import jax

from kernels.linear_scan.reference import decay


def linear_scan(
  x: jax.Array,
  log_a: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
  reverse: bool,
) -> tuple[jax.Array, jax.Array]:
  """See `kernels.linear_scan.linear_scan`."""
  return scan_decayed(x, decay(log_a, reset), h0, reverse)


def scan_decayed(
  x: jax.Array, a: jax.Array, h0: jax.Array | None, reverse: bool
) -> tuple[jax.Array, jax.Array]:
  """Solves `h_t = a_t h_{t-1} + x_t` for decays a [B, T, R], float32 or wider."""
  inputs = x.astype(a.dtype)
  if h0 is not None:
    first = -1 if reverse else 0
    inputs = inputs.at[:, first].add(a[:, first] * h0)

  def combine(earlier, later):
    return earlier[0] * later[0], later[0] * earlier[1] + later[1]

  _, h = jax.lax.associative_scan(combine, (a, inputs), axis=1, reverse=reverse)
  return h.astype(x.dtype), h[:, 0 if reverse else -1]
