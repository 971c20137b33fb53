"""The fused RG-LRU (arXiv 2402.19427, equations 1-4) as Pallas TPU kernels.

Memory traffic in bfloat16: 8 bytes per element forward (x, gate_a, gate_x in; h out) and 16
backward. The states that enter the time blocks add 4 bytes per row, channel and block of at least
128 steps. The gates are computed in float32, and again in the backward pass; they are not stored.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from base.custom_gradient import custom_vjp
from kernels import checkpoint_names, manual_axes
from kernels.rg_lru import reference, tile_math
from kernels.scan_tpu import blocks as tpu_blocks
from kernels.scan_tpu import scan
from kernels.scan_tpu.blocks import refusal  # noqa: F401 - used by kernels.platform


def rg_lru(
  x: jax.Array,
  gate_a: jax.Array,
  gate_x: jax.Array,
  log_decay: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """See `kernels.rg_lru.rg_lru`.

  Raises:
    ValueError: the width is not a multiple of 128.
  """
  if x.shape[1] == 1:
    # One decoding step has no recurrence in time: XLA fuses it with its neighbours.
    return reference.rg_lru(x, gate_a, gate_x, log_decay, h0, reset)
  return fused(x, gate_a, gate_x, log_decay, h0, reset)


def fused(x, gate_a, gate_x, log_decay, h0, reset, *, plan=None, native_math=None, interpret=False):
  """Runs the kernels for any T, with options for tests and benchmarks.

  Args:
    x, gate_a, gate_x, log_decay, h0, reset: see `kernels.rg_lru.rg_lru`.
    plan: the blocks (`kernels.scan_tpu.blocks.BlockPlan`); None picks them.
    native_math: whether the chip has sigmoid and rsqrt as instructions; None decides by the chip.
    interpret: run as plain XLA operations.
  """
  batch, _, width = x.shape
  tpu_blocks.check_width("rg_lru", x)
  if h0 is None:
    h0 = jnp.zeros((batch, width), jnp.float32)
  if native_math is None:
    native_math = tpu_blocks.has_native_math()
  if plan is None:
    # The backward kernel reads x, gate_a, gate_x, h, dh and writes three gradients.
    plan = tpu_blocks.plan(x.shape, x.dtype.itemsize, forward_arrays=4, backward_arrays=8)
  mask = None if reset is None else tpu_blocks.reset_log(reset, plan.forward)
  arithmetic = tile_math.Arithmetic(x.dtype == jnp.float32, native_math, native_math)
  arrays = manual_axes.vary_together(
    x, gate_a, gate_x, log_decay.astype(jnp.float32)[None], h0.astype(jnp.float32), mask
  )
  return _rg_lru(plan, arithmetic, interpret, *arrays)


@custom_vjp(nondiff_argnums=(0, 1, 2))
def _rg_lru(plan, arithmetic, interpret, x, gate_a, gate_x, log_decay, h0, mask):
  h, h_last, _ = _forward(
    plan, arithmetic, interpret, x, gate_a, gate_x, log_decay, h0, mask, save_entries=False
  )
  return h, h_last


def _forward(plan, arithmetic, interpret, x, gate_a, gate_x, log_decay, h0, mask, *, save_entries):
  return scan.forward(
    functools.partial(tile_math.coefficients, arithmetic),
    (x, gate_a, gate_x),
    tile_math.channels(arithmetic, log_decay),
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
  h, h_last, entries = checkpoint_names.recurrence(h, h_last, entries)
  return (h, h_last), (x, gate_a, gate_x, log_decay, mask, h, entries)


def _vjp_backward(plan, arithmetic, interpret, saved, cotangents):
  x, gate_a, gate_x, log_decay, mask, h, entries = saved
  dh, dh_last = cotangents
  (dx, dgate_a, dgate_x), (dlog_decay,), dh0 = scan.backward(
    functools.partial(tile_math.decay, arithmetic),
    functools.partial(tile_math.gradients, arithmetic),
    (x, gate_a, gate_x),
    tile_math.backward_channels(arithmetic, log_decay),
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
