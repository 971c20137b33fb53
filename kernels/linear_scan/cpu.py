"""The recurrence as an indexed loop with a written-out gradient: the fastest plain XLA on CPUs.

`lax.scan` walks the leading axis, so it copies [B, T, R] into time-major order and back; a loop that
slices the time axis where it lies needs no copies.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.linear_scan.reference import decay

UNROLL = 2


def linear_scan(
  x: jax.Array,
  log_a: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
  reverse: bool,
) -> tuple[jax.Array, jax.Array]:
  """See `kernels.linear_scan.linear_scan`."""
  a = decay(log_a, reset)
  first = jnp.zeros_like(a[:, 0]) if h0 is None else h0.astype(a.dtype)
  return scan_decayed(x, a, first, reverse)


def scan_decayed(
  x: jax.Array, a: jax.Array, h0: jax.Array, reverse: bool
) -> tuple[jax.Array, jax.Array]:
  """Solves `h_t = a_t h_{t-1} + x_t` for float32 decays a [B, T, R] and h0 [B, R]."""
  return _scan(x, a, h0, reverse)


def _run(x, a, h0, reverse):
  """The loop itself; what it carries from step to step is h."""
  if x.shape[1] == 1:
    h = a[:, 0] * h0 + x[:, 0].astype(a.dtype)
    return h[:, None].astype(x.dtype), h

  def step(h, a_t, x_t):
    h = a_t * h + x_t
    return h, h

  return loop_over_time(step, (a, x), h0, x.dtype, reverse)


def loop_over_time(step, inputs, carry, dtype, reverse):
  """Runs `carry, out = step(carry, *inputs_t)` over axis 1 of [B, T, R] inputs.

  Args:
    step: maps the carry [B, R] and one [B, R] slice of each input, all in the carry's type.
    inputs: arrays [B, T, R].
    carry: [B, R].
    dtype: type of the collected results.
    reverse: run from the last step to the first.

  Returns:
    the results [B, T, R], and the last carry.
  """
  length = inputs[0].shape[1]

  def body(index, state):
    carry, out = state
    t = length - 1 - index if reverse else index
    slices = [
      jax.lax.dynamic_index_in_dim(array, t, axis=1, keepdims=False).astype(carry.dtype)
      for array in inputs
    ]
    carry, out_t = step(carry, *slices)
    out = jax.lax.dynamic_update_index_in_dim(out, out_t.astype(dtype), t, axis=1)
    return carry, out

  # Derived from an input, so that the loop's carry has the same sharding and the same manual axes.
  out = jnp.zeros_like(inputs[-1], dtype=dtype)
  carry, out = jax.lax.fori_loop(0, length, body, (carry, out), unroll=min(UNROLL, length))
  return out, carry


def adjoint(
  a: jax.Array, dh: jax.Array, dh_last: jax.Array, reverse: bool
) -> tuple[jax.Array, jax.Array]:
  """Solves `g_t = dh_t + a_{t+1} g_{t+1}` from the cotangents of h and of the last state.

  Args:
    a: [B, T, R] decays.
    dh: [B, T, R] cotangent of h.
    dh_last: [B, R] cotangent of the last state.
    reverse: the direction of the forward pass.

  Returns:
    g: [B, T, R] in a's dtype, the cotangent of x, and the cotangent of h0: [B, R].
  """

  def step(carried, a_t, dh_t):
    g = dh_t + carried
    return a_t * g, g

  return loop_over_time(step, (a, dh), dh_last, a.dtype, not reverse)


def previous_states(h: jax.Array, h0: jax.Array, reverse: bool) -> jax.Array:
  """The state before each step: h [B, T, R] shifted by one, h0 [B, R] first."""
  h, first = h.astype(h0.dtype), h0[:, None]
  return jnp.concatenate([h[:, 1:], first] if reverse else [first, h[:, :-1]], axis=1)


def _forward(x, a, h0, reverse):
  h, h_last = _run(x, a, h0, reverse)
  return (h, h_last), (a, h, h0)


def _backward(reverse, residuals, cotangents):
  a, h, h0 = residuals
  g, dh0 = adjoint(a, *cotangents, reverse)
  return g.astype(h.dtype), g * previous_states(h, h0, reverse), dh0


_scan = jax.custom_vjp(_run, nondiff_argnums=(3,))
_scan.defvjp(_forward, _backward)
