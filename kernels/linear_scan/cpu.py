"""The recurrence as an indexed loop with a custom gradient: the fastest plain XLA on CPUs.

`lax.scan` runs over the leading axis, so it copies [B, T, R] into time-major order and back. A loop
that slices the time axis in place needs no copies. An outer loop runs over chunks of time, so that
decays and other intermediate results stay in cache. Only log_a and h are kept for the backward
pass, which computes the decays again.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels import checkpoint_names, manual_axes
from kernels.linear_scan.reference import decay

UNROLL = 2
CHUNK = 64  # steps; 32 and 128 take as long


def linear_scan(
  x: jax.Array,
  log_a: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
  reverse: bool,
) -> tuple[jax.Array, jax.Array]:
  """See `kernels.linear_scan.linear_scan`."""
  wide = jnp.promote_types(log_a.dtype, jnp.float32)
  h0 = jnp.zeros_like(x[:, 0], wide) if h0 is None else h0.astype(wide)
  return _scan(*manual_axes.vary_together(x, log_a, h0, reset), reverse)


def _run(x, log_a, h0, reset, reverse):
  def step(start, h, x, log_a, reset):
    del start
    out, h = recur(x, decay(log_a, reset), h, reverse)
    return h, (out,)

  h_last, (h,) = over_chunks(step, h0, (x, log_a, reset), (x.dtype,), reverse=reverse)
  return h, h_last


def _forward(x, log_a, h0, reset, reverse):
  h, h_last = checkpoint_names.recurrence(*_run(x, log_a, h0, reset, reverse))
  return (h, h_last), (log_a, h0, reset, h)


def _backward(reverse, residuals, cotangents):
  log_a, h0, reset, h = residuals
  dh, dh_last = cotangents

  def step(start, carried, log_a, reset, h_here, dh):
    a = decay(log_a, reset)
    g, carried = adjoint(a, dh, carried, reverse)
    return carried, (g, g * a * states_before(h, h_here, start, h0, reverse))

  dh0, (dx, dlog_a) = over_chunks(
    step, dh_last, (log_a, reset, h, dh), (h.dtype, log_a.dtype), reverse=not reverse
  )
  return dx, dlog_a, dh0, None


_scan = jax.custom_vjp(_run, nondiff_argnums=(4,))
_scan.defvjp(_forward, _backward)


def over_chunks(step, carry, inputs, dtypes, *, reverse):
  """Runs `carry, outputs = step(start, carry, *inputs)` over chunks of CHUNK steps.

  Args:
    step: a function of the index of the chunk's first step, the carry, and the chunk of each input.
    carry: initial carry, a pytree.
    inputs: arrays [B, T, ...] or None; the first is [B, T, R].
    dtypes: dtypes of the outputs, which are [B, T, R].
    reverse: start with the last chunk.

  Returns:
    The last carry, and the outputs.
  """
  length = inputs[0].shape[1]
  if length <= CHUNK:
    carry, outputs = step(0, carry, *inputs)
    return carry, tuple(o.astype(dtype) for o, dtype in zip(outputs, dtypes, strict=True))

  def run(start, size, state):
    carry, outputs = state
    chunks = [
      None if x is None else jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in inputs
    ]
    # Without it, XLA slices again inside every elementwise loop, and does not vectorise the loop.
    chunks = jax.lax.optimization_barrier(chunks)
    carry, results = step(start, carry, *chunks)
    outputs = tuple(
      jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), start, axis=1)
      for whole, part in zip(outputs, results, strict=True)
    )
    return carry, outputs

  count, rest = divmod(length, CHUNK)
  state = carry, tuple(jnp.zeros_like(inputs[0], dtype) for dtype in dtypes)
  if rest and reverse:
    state = run(count * CHUNK, rest, state)
  state = jax.lax.fori_loop(
    0, count, lambda i, state: run((count - 1 - i if reverse else i) * CHUNK, CHUNK, state), state
  )
  if rest and not reverse:
    state = run(count * CHUNK, rest, state)
  return state


def recur(x: jax.Array, a: jax.Array, h0: jax.Array, reverse: bool) -> tuple[jax.Array, jax.Array]:
  """Solves `h_t = a_t h_{t-1} + x_t` for float32 decays a [B, T, R] and h0 [B, R] in one loop.

  It has no gradient; its callers have custom gradients.
  """
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
    step: a function of the carry [B, R] and one [B, R] slice of each input, all in the carry's
      dtype.
    inputs: arrays [B, T, R].
    carry: [B, R] initial carry.
    dtype: dtype of the collected results.
    reverse: run from the last step to the first.

  Returns:
    The results [B, T, R], and the last carry.
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

  # Made from an input, so that the loop's carry has the same sharding and the same manual axes.
  out = jnp.zeros_like(inputs[-1], dtype=dtype)
  carry, out = jax.lax.fori_loop(0, length, body, (carry, out), unroll=min(UNROLL, length))
  return out, carry


def adjoint(
  a: jax.Array, dh: jax.Array, dh_last: jax.Array, reverse: bool
) -> tuple[jax.Array, jax.Array]:
  """Solves the adjoint recurrence `g_t = dh_t + a_{t+1} g_{t+1}`.

  Args:
    a: [B, T, R] decays.
    dh: [B, T, R] cotangent of h.
    dh_last: [B, R] cotangent of the last state.
    reverse: the direction of the forward pass.

  Returns:
    The cotangent of x (g): [B, T, R] in a's dtype, and the cotangent of h0: [B, R].
  """

  def step(carried, a_t, dh_t):
    g = dh_t + carried
    return a_t * g, g

  return loop_over_time(step, (a, dh), dh_last, a.dtype, not reverse)


def states_before(
  h: jax.Array, here: jax.Array, start: int | jax.Array, h0: jax.Array, reverse: bool
) -> jax.Array:
  """Returns the state before each step of a chunk.

  Args:
    h: [B, T, R] states of all steps.
    here: [B, C, R] states of the chunk's steps.
    start: index of the chunk's first step.
    h0: [B, R] state before the first step.
    reverse: the direction of the recurrence.

  Returns:
    [B, C, R] in h0's dtype.
  """
  length = h.shape[1]
  edge = start + here.shape[1] if reverse else start - 1
  first = jax.lax.dynamic_index_in_dim(h, jnp.clip(edge, 0, length - 1), axis=1, keepdims=False)
  first = jnp.where(edge == (length if reverse else -1), h0, first.astype(h0.dtype))[:, None]
  here = here.astype(h0.dtype)
  return jnp.concatenate([here[:, 1:], first] if reverse else [first, here[:, :-1]], axis=1)
