"""The recurrence h_t = exp(log_a_t) * h_{t-1} + x_t as Pallas TPU kernels.

Memory traffic in bfloat16: 6 bytes per element forward (x, log_a in; h out) and 10 backward. The
kernel computes exp in float32, so a decay never loses its digits to bfloat16.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from base.custom_gradient import custom_vjp
from kernels import checkpoint_names, manual_axes
from kernels.linear_scan import reference
from kernels.linear_scan.tile_math import coefficients, decay, gradients
from kernels.scan_tpu import blocks as tpu_blocks
from kernels.scan_tpu import scan as pallas_tpu_scan
from kernels.scan_tpu.blocks import refusal  # noqa: F401 - used by kernels.platform


def linear_scan(
  x: jax.Array,
  log_a: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
  reverse: bool,
) -> tuple[jax.Array, jax.Array]:
  """See `kernels.linear_scan.linear_scan`.

  Raises:
    ValueError: the width is not a multiple of 128.
  """
  if x.shape[1] == 1:
    # One decoding step has no recurrence in time: XLA fuses it with its neighbours.
    return reference.linear_scan(x, log_a, h0, reset, reverse)
  return scan(x, log_a, h0, reset, reverse)


def scan(x, log_a, h0, reset, reverse=False, *, plan=None, interpret=False):
  """Runs the kernels for any T, with options for tests and benchmarks.

  Args:
    x, log_a, h0, reset, reverse: see `kernels.linear_scan.linear_scan`.
    plan: the blocks (`kernels.scan_tpu.blocks.BlockPlan`); None picks them.
    interpret: run as plain XLA operations.
  """
  batch, _, width = x.shape
  tpu_blocks.check_width("linear_scan", x)
  if reverse:
    # A flip copies the array (4 bytes per element), but no layer here runs backward in time.
    flipped = [None if v is None else jnp.flip(v, 1) for v in (x, log_a, reset)]
    h, h_last = scan(flipped[0], flipped[1], h0, flipped[2], plan=plan, interpret=interpret)
    return jnp.flip(h, 1), h_last
  if h0 is None:
    h0 = jnp.zeros((batch, width), jnp.float32)
  if plan is None:
    # The backward kernel reads log_a, h and dh, and writes two gradients.
    itemsize = max(x.dtype.itemsize, log_a.dtype.itemsize)
    plan = tpu_blocks.plan(x.shape, itemsize, forward_arrays=3, backward_arrays=5)
  mask = None if reset is None else tpu_blocks.reset_log(reset, plan.forward)
  arrays = manual_axes.vary_together(x, log_a, h0.astype(jnp.float32), mask)
  return _linear_scan(plan, interpret, *arrays)


@custom_vjp(nondiff_argnums=(0, 1))
def _linear_scan(plan, interpret, x, log_a, h0, mask):
  h, h_last, _ = _forward(plan, interpret, x, log_a, h0, mask, save_entries=False)
  return h, h_last


def _forward(plan, interpret, x, log_a, h0, mask, *, save_entries):
  return pallas_tpu_scan.forward(
    coefficients,
    (x, log_a),
    (),
    mask,
    h0,
    blocks=plan.forward,
    name="linear_scan_forward",
    save_entries=save_entries,
    flops=1,
    transcendentals=1,
    interpret=interpret,
  )


def _vjp_forward(plan, interpret, x, log_a, h0, mask):
  h, h_last, entries = _forward(plan, interpret, x, log_a, h0, mask, save_entries=True)
  h, h_last, entries = checkpoint_names.recurrence(h, h_last, entries)
  return (h, h_last), (log_a, mask, h, entries)


def _vjp_backward(plan, interpret, saved, cotangents):
  log_a, mask, h, entries = saved
  dh, dh_last = cotangents
  (dx, dlog_a), _, dh0 = pallas_tpu_scan.backward(
    decay,
    gradients,
    (log_a,),
    (),
    mask,
    h,
    entries,
    dh,
    dh_last,
    blocks=plan.backward,
    name="linear_scan_backward",
    dtypes=(h.dtype, log_a.dtype),
    kept=1,
    summed=0,
    flops=4,
    transcendentals=1,
    interpret=interpret,
  )
  return dx, dlog_a, dh0, None if mask is None else jnp.zeros_like(mask)


_linear_scan.defvjp(_vjp_forward, _vjp_backward)
