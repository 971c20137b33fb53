"""The gated step with a written-out gradient, for CPUs.

The gates are elementwise and vectorise over whole arrays; the recurrence is the indexed loop of
`kernels.linear_scan.cpu`. Only the inputs and h are kept for the backward pass; it computes the gates
again, which costs less than reading them from memory.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.linear_scan.cpu import adjoint, previous_states, scan_decayed
from kernels.rg_lru.gates import gated, input_scale_slope, one_minus_square


def rg_lru(
  x: jax.Array,
  gate_a: jax.Array,
  gate_x: jax.Array,
  log_decay: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """See `kernels.rg_lru.rg_lru`."""
  h0 = jnp.zeros_like(x[:, 0], log_decay.dtype) if h0 is None else h0.astype(log_decay.dtype)
  return _rg_lru(x, gate_a, gate_x, log_decay, h0, reset)


def _run(x, gate_a, gate_x, log_decay, h0, reset):
  a, inputs = gated(x, gate_a, gate_x, log_decay, reset)
  h, h_last = scan_decayed(inputs, a, h0, False)
  return h.astype(x.dtype), h_last


def _forward(*arguments):
  h, h_last = _run(*arguments)
  return (h, h_last), (*arguments, h)


def _backward(residuals, cotangents):
  x, gate_a, gate_x, log_decay, h0, reset, h = residuals
  wide = log_decay.dtype
  r = jax.nn.sigmoid(gate_a.astype(wide))
  i = jax.nn.sigmoid(gate_x.astype(wide))
  log_a = r * log_decay
  a = jnp.exp(log_a)
  square = one_minus_square(a, log_a)
  scale = jnp.sqrt(square)
  scale_slope = input_scale_slope(a, square)
  if reset is not None:
    start = reset[..., None]
    a = jnp.where(start, 0, a)
    scale = jnp.where(start, 1, scale)
    scale_slope = jnp.where(start, 0, scale_slope)

  g, dh0 = adjoint(a, *cotangents, reverse=False)
  wide_x = x.astype(wide)
  dlog_a = g * (a * previous_states(h, h0, reverse=False) + scale_slope * i * wide_x)
  dr = dlog_a * log_decay * r * (1 - r)
  di = g * scale * wide_x * i * (1 - i)
  dx = g * scale * i
  dlog_decay = jnp.sum(dlog_a * r, axis=(0, 1))
  return (
    dx.astype(x.dtype),
    dr.astype(gate_a.dtype),
    di.astype(gate_x.dtype),
    dlog_decay,
    dh0,
    None,
  )


_rg_lru = jax.custom_vjp(_run)
_rg_lru.defvjp(_forward, _backward)
