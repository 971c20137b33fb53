"""Formulas of the RG-LRU's gates for accelerator kernels, on float32 tiles of any shape.

The elementary functions are chosen by their cost on a TPU's transcendental unit (EUP) and vector
unit (VALU; v3 and v4 have two VALU slots per bundle). A GPU's special function unit has the same
balance:

* sigmoid is tanh/2 + 1/2: one EUP and two VALU operations instead of fifteen. It loses relative
  accuracy where the sigmoid is small, which bfloat16 gates cannot represent anyway. For float32
  inputs it is 2^-log2(1 + e^-v) instead.
* 1 - a^2 is tanh(-log(a) / 2) * (1 + a)^2: it is exact for a near 1, where 1 - a*a has no digits
  left.
* a square root is 2^(log2(v)/2) before v6e: there, sqrt and rsqrt take ten VALU operations to
  refine.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

LOG2_E = 1.4426950408889634
# The derivative of sqrt is bounded by 1000, as in RecurrentGemma: 1 / (2 sqrt(v)) <= 1000.
MAX_RSQRT = 2000.0
# |log a| is at least this, because 1 - a^2 = 0 has no inverse square root. The input scale is then
# 1e-13 instead of 0.
SMALLEST = 1e-26


class Arithmetic(NamedTuple):
  """Static choice of formulas by the dtype and the chip."""

  exact_sigmoid: bool  # small sigmoids keep their relative accuracy, for float32 inputs
  native_sigmoid: bool  # the chip has a sigmoid instruction (TPU v6e and later)
  native_rsqrt: bool  # the chip has an rsqrt instruction (TPU v6e and later, GPUs)


def _log2(log_decay):
  return jnp.minimum(log_decay, -SMALLEST) * LOG2_E


def channels(arithmetic, log_decay):
  """Returns the factors per channel that turn a gate into log2 a, shaped like log_decay.

  They are computed once, not per element.
  """
  log2_decay = _log2(log_decay)
  if arithmetic.exact_sigmoid:
    return (log2_decay,)
  # log2 a = tanh(gate / 2) * half + half. The second factor is larger by 2^-22, so that log2 a is
  # below 0 for a closed gate, whatever the last bit of the chip's tanh: 1 - a^2 must be positive.
  half = 0.5 * log2_decay
  return half, half * (1.0 + 2.0**-22)


def backward_channels(arithmetic, log_decay):
  """Returns the arguments `rows` of `decay` and `gradients`.

  These are log_decay, its inverse in base 2, and `channels`.
  """
  return log_decay, 1.0 / _log2(log_decay), *channels(arithmetic, log_decay)


def _sigmoid(arithmetic, v):
  if arithmetic.exact_sigmoid:
    return jnp.exp2(-jnp.log2(1.0 + jnp.exp2(v * -LOG2_E)))
  if arithmetic.native_sigmoid:
    return jax.nn.sigmoid(v)
  return 0.5 * jnp.tanh(0.5 * v) + 0.5


def _log2_decay(arithmetic, gate_a, rows, mask):
  if arithmetic.exact_sigmoid:
    log2_a = jnp.minimum(_sigmoid(arithmetic, gate_a) * rows[0], -SMALLEST)
    return log2_a if mask is None else log2_a + mask
  # The sum in brackets does not depend on the tanh, so it is computed meanwhile.
  return jnp.tanh(0.5 * gate_a) * rows[0] + (rows[1] if mask is None else rows[1] + mask)


def _tanh_half(log2_a):
  """Returns (1 - a) / (1 + a) in (0, 1].

  It is exactly 1 at a reset, where log2_a is a large negative number.
  """
  return jnp.tanh(log2_a * (-0.5 / LOG2_E))


def _power(v, exponent):
  if hasattr(jax.lax, "log2"):
    return jnp.exp2(exponent * jnp.log2(v))
  # Before JAX had a log2, jnp.log2 divided; this form needs one multiplication less.
  return jnp.exp2((exponent * LOG2_E) * jnp.log(v))


def coefficients(arithmetic, tiles, rows, mask):
  """Returns a_t and u_t = sqrt(1 - a_t^2) * sigmoid(gate_x) * x."""
  x, gate_a, gate_x = tiles
  ix = _sigmoid(arithmetic, gate_x) * x
  log2_a = _log2_decay(arithmetic, gate_a, rows, mask)
  a = jnp.exp2(log2_a)
  w = _tanh_half(log2_a)
  root = w * jax.lax.rsqrt(w) if arithmetic.native_rsqrt else _power(w, 0.5)
  # The root is ready last; in this order only one product waits for it.
  return a, (ix + a * ix) * root


def decay(arithmetic, tiles, rows, mask):
  """Returns a_t, and log2 a_t for `gradients`."""
  _, gate_a, _ = tiles
  log2_a = _log2_decay(arithmetic, gate_a, rows[2:], mask)
  return jnp.exp2(log2_a), log2_a


def gradients(arithmetic, tiles, rows, kept, g, h_before):
  """Returns the gradients of x, gate_a and gate_x, and the terms of that of log_decay.

  With m = sqrt(1 - a^2), i = sigmoid(gate_x), r = sigmoid(gate_a) and L = r * log_decay = log a:
  u = m i x and dm/dL = -a^2 / m. So the gradient of L is g (a h_before - i x a^2 / m), and the
  gradient of i x is g m.
  """
  x, _, gate_x = tiles
  log_decay, inverse_log2_decay, *_ = rows
  a, log2_a = kept
  i = _sigmoid(arithmetic, gate_x)
  # At a reset this is not the gate, but there its gradient is 0.
  r = log2_a * inverse_log2_decay
  variance = _tanh_half(log2_a) * ((1.0 + a) * (1.0 + a))
  if arithmetic.native_rsqrt:
    inverse = jax.lax.rsqrt(variance)
  else:
    inverse = _power(variance, -0.5)
  ix = i * x
  dx = g * (variance * inverse) * i
  dlog_a = (g * a) * (h_before - (a * jnp.minimum(inverse, MAX_RSQRT)) * ix)
  dlog_decay = dlog_a * r
  through_r = dlog_decay * log_decay
  return (dx, through_r - through_r * r, dx * (x - ix)), (dlog_decay,)
