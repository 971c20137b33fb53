"""Reference recurrence as one `lax.scan`, differentiated by JAX: slow, simple enough to trust."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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

  def step(h, inputs):
    a_t, x_t = inputs
    h = a_t * h + x_t.astype(a.dtype)
    return h, h.astype(x.dtype)

  first = jnp.zeros_like(a[:, 0]) if h0 is None else h0.astype(a.dtype)
  inputs = (jnp.swapaxes(a, 0, 1), jnp.swapaxes(x, 0, 1))
  last, h = jax.lax.scan(step, first, inputs, reverse=reverse)
  return jnp.swapaxes(h, 0, 1), last


def decay(log_a: jax.Array, reset: jax.Array | None) -> jax.Array:
  """Returns the decay [B, T, R], float32 or wider; zero where a segment starts."""
  a = jnp.exp(log_a.astype(jnp.promote_types(log_a.dtype, jnp.float32)))
  return a if reset is None else jnp.where(reset[..., None], 0, a)
