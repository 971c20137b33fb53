"""The diagonal linear recurrence of a mixer, on one device or split along time."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kernels.linear_scan import linear_scan
from layers.segments import Segments
from parallel import sequence


def linear_recurrence(
  x: jax.Array,
  log_a: jax.Array,
  segments: Segments,
  h0: jax.Array | None = None,
  *,
  phase: jax.Array | None = None,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Solves `h_t = exp(log_a_t) h_{t-1} + x_t`, from zero where a segment starts.

  With `phase` the recurrence is complex; see `kernels.linear_scan.linear_scan`.

  Args:
    x: [B, T, R] inputs.
    log_a: [B, T, R] logarithms of the decays, <= 0; [B, T, R / 2] with `phase`.
    segments: boundaries of the T tokens.
    h0: [B, R] float32 state before the first token; zeros if None.
    phase: [B, T, R / 2] float32, radians; None for a real recurrence.
    implementation: a recurrence kernel's name; None picks by backend.

  Returns:
    h: [B, T, R], and the state after the last token, [B, R] float32; None where time is split.
  """
  run = functools.partial(linear_scan, implementation=implementation)
  if phase is None:
    return sequence.recur(run, _log_of_product, (x, log_a), segments.starts, h0)
  if not sequence.is_split():
    return run(x, log_a, h0, phase=phase, reset=segments.starts)
  run_complex = functools.partial(_run_complex, run)
  arrays, h0 = (x, log_a, phase), None if h0 is None else jax.lax.complex(*jnp.split(h0, 2, -1))
  h, h_last = sequence.recur(run_complex, _log_of_complex_product, arrays, segments.starts, h0)
  return h, None if h_last is None else _parts(h_last)


def _log_of_product(x, log_a):
  """The logarithm of the product of all decays: [B, R] float32."""
  del x
  return jnp.sum(log_a.astype(jnp.float32), axis=1)


def _run_complex(run, x, log_a, phase, h0, *, reset):
  """Runs with complex states [B, R / 2], which is how shards of time exchange them."""
  h0 = None if h0 is None else _parts(h0)
  h, h_last = run(x, log_a, h0, phase=phase, reset=reset)
  return h, jax.lax.complex(*jnp.split(h_last, 2, axis=-1))


def _parts(h: jax.Array) -> jax.Array:
  """Real and imaginary parts of [B, R / 2] side by side, [B, R]."""
  return jnp.concatenate([h.real, h.imag], axis=-1)


def _log_of_complex_product(x, log_a, phase):
  """The complex logarithm of the product of all decays: [B, R / 2]."""
  del x
  return jax.lax.complex(jnp.sum(log_a, axis=1), jnp.sum(phase, axis=1))
