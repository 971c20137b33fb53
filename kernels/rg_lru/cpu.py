"""The gated step with a custom gradient, for CPUs.

The gates are elementwise, and XLA makes one pass over the array for each exp, tanh and square root.
The step therefore runs over chunks of time, so that intermediate results stay in cache. The
recurrence is the indexed loop of `kernels.linear_scan.cpu`. Only the inputs and h are kept for the
backward pass; it computes the gates again, which costs less than reading them from memory.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels import checkpoint_names, manual_axes
from kernels.linear_scan.cpu import adjoint, over_chunks, recur, states_before
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
  return _rg_lru(*manual_axes.vary_together(x, gate_a, gate_x, log_decay, h0, reset))


def _run(x, gate_a, gate_x, log_decay, h0, reset):
  def step(start, h, x, gate_a, gate_x, reset):
    del start
    a, inputs = gated(x, gate_a, gate_x, log_decay, reset)
    out, h = recur(inputs, a, h, False)
    return h, (out,)

  h_last, (h,) = over_chunks(step, h0, (x, gate_a, gate_x, reset), (x.dtype,), reverse=False)
  return h, h_last


def _forward(*arguments):
  h, h_last = checkpoint_names.recurrence(*_run(*arguments))
  return (h, h_last), (*arguments, h)


def _backward(residuals, cotangents):
  x, gate_a, gate_x, log_decay, h0, reset, h = residuals
  dh, dh_last = cotangents
  wide = log_decay.dtype

  def step(start, carry, x, gate_a, gate_x, reset, h_here, dh):
    carried, dlog_decay = carry
    x = x.astype(wide)
    r, i = jax.nn.sigmoid(gate_a.astype(wide)), jax.nn.sigmoid(gate_x.astype(wide))
    log_a = r * log_decay
    a = jnp.exp(log_a)
    square = one_minus_square(a, log_a)
    scale, scale_slope = jnp.sqrt(square), input_scale_slope(a, square)
    if reset is not None:
      first = reset[..., None]
      a = jnp.where(first, 0, a)
      scale = jnp.where(first, 1, scale)
      scale_slope = jnp.where(first, 0, scale_slope)

    g, carried = adjoint(a, dh, carried, reverse=False)
    before = states_before(h, h_here, start, h0, reverse=False)
    dlog_a = g * (a * before + scale_slope * i * x)
    dr = dlog_a * log_decay * r * (1 - r)
    scaled = g * scale
    dlog_decay += jnp.sum(dlog_a * r, axis=(0, 1))
    return (carried, dlog_decay), (scaled * i, dr, scaled * x * i * (1 - i))

  (dh0, dlog_decay), gradients = over_chunks(
    step,
    (dh_last, jnp.zeros_like(log_decay)),
    (x, gate_a, gate_x, reset, h, dh),
    (x.dtype, gate_a.dtype, gate_x.dtype),
    reverse=True,
  )
  return (*gradients, dlog_decay, dh0, None)


_rg_lru = jax.custom_vjp(_run)
_rg_lru.defvjp(_forward, _backward)
