"""The fused RG-LRU (arXiv 2402.19427, equations 1-4) as Pallas TPU kernels.

Traffic: 8 bytes per element forward (x, gate_a, gate_x in; h out) and 16 backward, in bfloat16, plus
4 bytes per element and block of 128 steps or more for the states that enter the blocks. The gate
mathematics is float32 and recomputed in the backward pass; nothing of it is stored.

The elementary functions are chosen by what they cost on the transcendental unit (EUP) and on the vector
unit (VALU), of which v3 and v4 have two slots per bundle:

* sigmoid is tanh/2 + 1/2, one EUP and two VALU operations instead of fifteen. It loses relative
  accuracy where the sigmoid is small, which bfloat16 gates cannot express anyway; float32 inputs get
  2^-log2(1 + e^-v) instead.
* 1 - a^2 = tanh(-log(a) / 2) * (1 + a)^2: exact for a near 1, where 1 - a*a has no digits left.
* a square root is 2^(log2(v)/2) before v6e, where sqrt and rsqrt are refined in ten VALU operations.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels import manual_axes, pallas_tpu_scan
from kernels import pallas_tpu_blocks as tpu_blocks
from kernels.rg_lru import reference

LOG2_E = 1.4426950408889634
# The derivative of sqrt is bounded by 1000, as in RecurrentGemma: 1 / (2 sqrt(v)) <= 1000.
MAX_RSQRT = 2000.0
# |log a| is kept above this: a = 1 has no inverse square root. The input it lets in is 1e-13 x.
SMALLEST = 1e-26


class Arithmetic(NamedTuple):
  """Which formulas suit the dtype and the chip. Static."""

  exact_sigmoid: bool  # relative accuracy of small sigmoids, for float32 inputs
  native: bool  # sigmoid and rsqrt are EUP operations (v6e and later)


def rg_lru(
  x: jax.Array,
  gate_a: jax.Array,
  gate_x: jax.Array,
  log_decay: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """The implementation 'pallas_tpu' of `kernels.rg_lru.rg_lru`, which documents the arguments.

  Raises:
    ValueError: the width is not a multiple of 128.
  """
  if x.shape[1] == 1:
    # One decoding step has no recurrence in time: XLA fuses it with its neighbours.
    return reference.rg_lru(x, gate_a, gate_x, log_decay, h0, reset)
  return fused(x, gate_a, gate_x, log_decay, h0, reset)


def fused(x, gate_a, gate_x, log_decay, h0, reset, *, plan=None, native_math=None, interpret=False):
  """As `rg_lru`, any T, with what tests and benchmarks want to set.

  Args:
    x, gate_a, gate_x, log_decay, h0, reset: see `kernels.rg_lru.rg_lru`.
    plan: `pallas_tpu_blocks.Plan`; None chooses.
    native_math: whether the chip has sigmoid and rsqrt as instructions; None asks the chip.
    interpret: run as plain XLA operations.
  """
  batch, _, width = x.shape
  tpu_blocks.check_width("rg_lru", width)
  if h0 is None:
    h0 = jnp.zeros((batch, width), jnp.float32)
  if native_math is None:
    native_math = tpu_blocks.has_native_math()
  if plan is None:
    # The backward kernel reads x, gate_a, gate_x, h, dh and writes three gradients.
    plan = tpu_blocks.plan(x.shape, x.dtype.itemsize, forward_arrays=4, backward_arrays=8)
  mask = None if reset is None else tpu_blocks.reset_log(reset, plan.forward)
  arithmetic = Arithmetic(x.dtype == jnp.float32, native_math)
  arrays = manual_axes.vary_together(
    x, gate_a, gate_x, log_decay.astype(jnp.float32)[None], h0.astype(jnp.float32), mask
  )
  return _rg_lru(plan, arithmetic, interpret, *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _rg_lru(plan, arithmetic, interpret, x, gate_a, gate_x, log_decay, h0, mask):
  h, h_last, _ = _forward(
    plan, arithmetic, interpret, x, gate_a, gate_x, log_decay, h0, mask, save_entries=False
  )
  return h, h_last


def _forward(plan, arithmetic, interpret, x, gate_a, gate_x, log_decay, h0, mask, *, save_entries):
  return pallas_tpu_scan.forward(
    functools.partial(_coefficients, arithmetic),
    (x, gate_a, gate_x),
    _channels(arithmetic, log_decay),
    mask,
    h0,
    blocks=plan.forward,
    name="rg_lru_forward",
    save_entries=save_entries,
    flops=18,
    transcendentals=6,
    interpret=interpret,
  )


def _vjp_forward(plan, arithmetic, interpret, x, gate_a, gate_x, log_decay, h0, mask):
  h, h_last, entries = _forward(
    plan, arithmetic, interpret, x, gate_a, gate_x, log_decay, h0, mask, save_entries=True
  )
  return (h, h_last), (x, gate_a, gate_x, log_decay, mask, h, entries)


def _vjp_backward(plan, arithmetic, interpret, saved, cotangents):
  x, gate_a, gate_x, log_decay, mask, h, entries = saved
  dh, dh_last = cotangents
  (dx, dgate_a, dgate_x), (dlog_decay,), dh0 = pallas_tpu_scan.backward(
    functools.partial(_decay, arithmetic),
    functools.partial(_gradients, arithmetic),
    (x, gate_a, gate_x),
    (log_decay, 1.0 / _log2(log_decay), *_channels(arithmetic, log_decay)),
    mask,
    h,
    entries,
    dh,
    dh_last,
    blocks=plan.backward,
    name="rg_lru_backward",
    dtypes=(x.dtype, gate_a.dtype, gate_x.dtype),
    kept=2,
    summed=1,
    flops=40,
    transcendentals=7,
    interpret=interpret,
  )
  dmask = None if mask is None else jnp.zeros_like(mask)
  return dx, dgate_a, dgate_x, dlog_decay[None], dh0, dmask


_rg_lru.defvjp(_vjp_forward, _vjp_backward)


# The gate mathematics, on float32 tiles [chunk, 128] of one slab.


def _log2(log_decay):
  return jnp.minimum(log_decay, -SMALLEST) * LOG2_E


def _channels(arithmetic, log_decay):
  """The [1, R] rows that turn the gate into log2 a, worked out here once rather than per element."""
  log2_decay = _log2(log_decay)
  if arithmetic.exact_sigmoid:
    return (log2_decay,)
  # log2 a = tanh(gate / 2) * half + half. Half an ulp more on one side keeps it below 0 for a closed
  # gate, whatever the last bit of the chip's tanh: its square root has to exist.
  half = 0.5 * log2_decay
  return half, half * (1.0 + 2.0**-22)


def _sigmoid(arithmetic, v):
  if arithmetic.exact_sigmoid:
    return jnp.exp2(-jnp.log2(1.0 + jnp.exp2(v * -LOG2_E)))
  if arithmetic.native:
    return jax.nn.sigmoid(v)
  return 0.5 * jnp.tanh(0.5 * v) + 0.5


def _log2_decay(arithmetic, gate_a, channels, mask):
  if arithmetic.exact_sigmoid:
    log2_a = jnp.minimum(_sigmoid(arithmetic, gate_a) * channels[0], -SMALLEST)
  else:
    log2_a = jnp.tanh(0.5 * gate_a) * channels[0] + channels[1]
  return log2_a if mask is None else log2_a + mask


def _tanh_half(log2_a):
  """(1 - a) / (1 + a), in (0, 1]; exactly 1 at a reset, where log2_a is very negative."""
  return jnp.tanh(log2_a * (-0.5 / LOG2_E))


def _power(v, exponent):
  if hasattr(jax.lax, "log2"):
    return jnp.exp2(exponent * jnp.log2(v))
  # Before JAX had a log2, jnp.log2 divided: this is one multiplication less.
  return jnp.exp2((exponent * LOG2_E) * jnp.log(v))


def _coefficients(arithmetic, tiles, channels, mask):
  """a_t and u_t = sqrt(1 - a_t^2) * sigmoid(gate_x) * x."""
  x, gate_a, gate_x = tiles
  log2_a = _log2_decay(arithmetic, gate_a, channels, mask)
  a = jnp.exp2(log2_a)
  w = _tanh_half(log2_a)
  root = w * jax.lax.rsqrt(w) if arithmetic.native else _power(w, 0.5)
  return a, ((1.0 + a) * root) * (_sigmoid(arithmetic, gate_x) * x)


def _decay(arithmetic, tiles, channels, mask):
  _, gate_a, _ = tiles
  log2_a = _log2_decay(arithmetic, gate_a, channels[2:], mask)
  return jnp.exp2(log2_a), log2_a


def _gradients(arithmetic, tiles, channels, kept, g, h_before):
  """With m = sqrt(1 - a^2), i and r the open gates, L = r * log_decay = log a:

  u = m i x,  dm/dL = -a^2 / m,  so  dL = g (a h_before - i x a^2 / m)  and g m flows to i and x.
  """
  x, _, gate_x = tiles
  log_decay, inverse_log2_decay, *_ = channels
  a, log2_a = kept
  i = _sigmoid(arithmetic, gate_x)
  r = (
    log2_a * inverse_log2_decay
  )  # at a reset this is no gate, but there everything flowing to it is 0
  variance = _tanh_half(log2_a) * ((1.0 + a) * (1.0 + a))
  if arithmetic.native:
    inverse = jax.lax.rsqrt(variance)
  else:
    inverse = _power(variance, -0.5)
  ix = i * x
  dx = g * (variance * inverse) * i
  dlog_a = (g * a) * (h_before - (a * jnp.minimum(inverse, MAX_RSQRT)) * ix)
  dlog_decay = dlog_a * r
  through_r = dlog_decay * log_decay
  return (dx, through_r - through_r * r, dx * (x - ix)), (dlog_decay,)
