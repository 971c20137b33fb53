"""The gates of the RG-LRU as accelerator kernels compute them, on float32 tiles of any shape.

The elementary functions are chosen by what they cost on a TPU's transcendental unit (EUP) and
vector unit (VALU), of which v3 and v4 have two slots per bundle; a GPU's special function unit has
the same balance:

* sigmoid is tanh/2 + 1/2, one EUP and two VALU operations instead of fifteen. It loses relative
  accuracy where the sigmoid is small, which bfloat16 gates cannot express anyway; float32 inputs
  get 2^-log2(1 + e^-v) instead.
* 1 - a^2 = tanh(-log(a) / 2) * (1 + a)^2: exact for a near 1, where 1 - a*a has no digits left.
* a square root is 2^(log2(v)/2) before v6e, where sqrt and rsqrt are refined in ten VALU
  operations.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

LOG2_E = 1.4426950408889634
# The derivative of sqrt is bounded by 1000, as in RecurrentGemma: 1 / (2 sqrt(v)) <= 1000.
MAX_RSQRT = 2000.0
# |log a| is kept above this: a = 1 has no inverse square root. The input it lets in is 1e-13 x.
SMALLEST = 1e-26


class Arithmetic(NamedTuple):
  """Which formulas suit the dtype and the chip. Static."""

  exact_sigmoid: bool  # relative accuracy of small sigmoids, for float32 inputs
  native_sigmoid: bool  # the chip has sigmoid as an instruction (TPU v6e and later)
  native_rsqrt: bool  # and rsqrt (the same, and GPUs)


def _log2(log_decay):
  return jnp.minimum(log_decay, -SMALLEST) * LOG2_E


def channels(arithmetic, log_decay):
  """The rows, shaped like log_decay, that turn a gate into log2 a: worked out once, not per
  element.
  """
  log2_decay = _log2(log_decay)
  if arithmetic.exact_sigmoid:
    return (log2_decay,)
  # log2 a = tanh(gate / 2) * half + half. Half an ulp more on one side keeps it below 0 for a
  # closed gate, whatever the last bit of the chip's tanh: its square root has to exist.
  half = 0.5 * log2_decay
  return half, half * (1.0 + 2.0**-22)


def backward_channels(arithmetic, log_decay):
  """What `decay` and `gradients` need: log_decay, its inverse in base 2, and `channels`."""
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
  # The sum in brackets does not wait for the tanh.
  return jnp.tanh(0.5 * gate_a) * rows[0] + (rows[1] if mask is None else rows[1] + mask)


def _tanh_half(log2_a):
  """(1 - a) / (1 + a), in (0, 1]; exactly 1 at a reset, where log2_a is very negative."""
  return jnp.tanh(log2_a * (-0.5 / LOG2_E))


def _power(v, exponent):
  if hasattr(jax.lax, "log2"):
    return jnp.exp2(exponent * jnp.log2(v))
  # Before JAX had a log2, jnp.log2 divided: this is one multiplication less.
  return jnp.exp2((exponent * LOG2_E) * jnp.log(v))


def coefficients(arithmetic, tiles, rows, mask):
  """a_t and u_t = sqrt(1 - a_t^2) * sigmoid(gate_x) * x."""
  x, gate_a, gate_x = tiles
  ix = _sigmoid(arithmetic, gate_x) * x
  log2_a = _log2_decay(arithmetic, gate_a, rows, mask)
  a = jnp.exp2(log2_a)
  w = _tanh_half(log2_a)
  root = w * jax.lax.rsqrt(w) if arithmetic.native_rsqrt else _power(w, 0.5)
  # The root is ready last, and one product waits for it.
  return a, (ix + a * ix) * root


def decay(arithmetic, tiles, rows, mask):
  """a_t, and log2 a_t for `gradients`."""
  _, gate_a, _ = tiles
  log2_a = _log2_decay(arithmetic, gate_a, rows[2:], mask)
  return jnp.exp2(log2_a), log2_a


def gradients(arithmetic, tiles, rows, kept, g, h_before):
  """With m = sqrt(1 - a^2), i and r the open gates, L = r * log_decay = log a:

  u = m i x,  dm/dL = -a^2 / m,  so  dL = g (a h_before - i x a^2 / m)  and g m flows to i and x.
  """
  x, _, gate_x = tiles
  log_decay, inverse_log2_decay, *_ = rows
  a, log2_a = kept
  i = _sigmoid(arithmetic, gate_x)
  # At a reset this is no gate, but there everything that flows to it is 0.
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
