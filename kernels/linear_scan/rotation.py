"""The recurrence with complex decays, by any implementation of the real one.

In a frame that rotates with the phases of the decays, the decay is real. Let `phi_t` be the sum of
the phases up to t, and `h_t = e^{i phi_t} g_t`. Then `h_t = |a_t| e^{i phase_t} h_{t-1} + x_t`
becomes `g_t = |a_t| g_{t-1} + e^{-i phi_t} x_t`. The real and imaginary parts of g are two channels
of the real recurrence.

In that frame the gradient of a phase is local: with mu_t the cotangent of the rotated input, it is
the real inner product of mu_t and `i |a_t| g_{t-1}`. It needs no sum over time, in which large
terms would cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from base.custom_gradient import custom_vjp
from kernels import manual_axes
from kernels.linear_scan.reference import decay

Run = Callable[..., tuple[jax.Array, jax.Array]]


def complex_scan(
  run: Run,
  x: jax.Array,
  log_a: jax.Array,
  phase: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
  reverse: bool,
) -> tuple[jax.Array, jax.Array]:
  """Solves the complex recurrence of `kernels.linear_scan.linear_scan`.

  Args:
    run: an implementation of the real recurrence.
    x, log_a, phase, h0, reset, reverse: see there.
  """
  if h0 is None:
    h0 = jnp.zeros_like(x[:, 0], phase.dtype)
  arrays = manual_axes.vary_together(x, log_a, phase, h0.astype(phase.dtype), reset)
  return _scan(run, reverse, *arrays)


@custom_vjp(nondiff_argnums=(0, 1))
def _scan(run, reverse, *arrays):
  return _forward(run, reverse, *arrays)[0]


def _forward(run, reverse, x, log_a, phase, h0, reset):
  angle = _summed(phase, reverse)
  last = 0 if reverse else -1

  def scan(v, log_a, h0):
    return run(v, jnp.concatenate([log_a, log_a], axis=-1), h0, reset, reverse)

  (g, g_last), pull = jax.vjp(scan, _turned(x, -angle), log_a, h0)
  results = _turned(g, angle), _turned(g_last, angle[:, last])
  return results, (log_a, angle, h0, reset, g, pull)


def _backward(run, reverse, residuals, cotangents):
  del run
  log_a, angle, h0, reset, g, pull = residuals
  dh, dh_last = cotangents
  wide = h0.dtype
  first, last = (-1, 0) if reverse else (0, -1)
  mu, dlog_a, dh0 = pull((_turned(dh, -angle), _turned(dh_last, -angle[:, last])))
  before = jnp.roll(g, -1 if reverse else 1, axis=1).astype(wide).at[:, first].set(h0)
  (mu_real, mu_imag), (g_real, g_imag) = (
    jnp.split(z.astype(wide), 2, axis=-1) for z in (mu, before)
  )
  dphase = decay(log_a, reset) * (mu_imag * g_real - mu_real * g_imag)
  return _turned(mu, angle), dlog_a, dphase.astype(wide), dh0, None


_scan.defvjp(_forward, _backward)


def _summed(phase: jax.Array, reverse: bool) -> jax.Array:
  """Returns running sums of phases [B, T, C], modulo 2 pi.

  The sums are fractions of a turn, and full turns are dropped after each addition: a float32 sum of
  2000 radians would have an error of 1e-4 in every step.
  """

  def part(turns):
    return turns - jnp.round(turns)

  turns = part(phase / (2 * math.pi))
  summed = jax.lax.associative_scan(lambda a, b: part(a + b), turns, axis=1, reverse=reverse)
  return summed * (2 * math.pi)


def _turned(z: jax.Array, angle: jax.Array) -> jax.Array:
  """Multiplies by `e^{i angle}`.

  Args:
    z: [..., 2C], real parts first, then imaginary parts.
    angle: [..., C] radians.
  """
  real, imag = jnp.split(z.astype(angle.dtype), 2, axis=-1)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return jnp.concatenate([real * cos - imag * sin, real * sin + imag * cos], axis=-1).astype(
    z.dtype
  )
