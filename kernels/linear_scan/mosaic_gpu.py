"""The recurrence h_t = exp(log_a_t) * h_{t-1} + x_t as Mosaic GPU kernels, for Hopper and later.

Memory traffic in bfloat16: 6 bytes per element forward and 10 backward. If there are too few rows
and channels for the GPU, it is 10 and 14 (`kernels.scan_gpu.chunks`). The kernel computes exp in
float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from base.custom_gradient import custom_vjp
from kernels import checkpoint_names, manual_axes
from kernels.linear_scan import reference
from kernels.linear_scan.tile_math import coefficients, decay, gradients
from kernels.scan_gpu import chunks as mosaic_gpu_chunks
from kernels.scan_gpu import scan as mosaic_gpu_scan
from kernels.scan_gpu.scan import refusal, unavailable_reason  # noqa: F401 - for platform


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


def scan(x, log_a, h0, reset, reverse=False, *, chunks=None, interpret=None):
  """Runs the kernels for any T, with options for tests and benchmarks.

  Args:
    x, log_a, h0, reset, reverse: see `kernels.linear_scan.linear_scan`.
    chunks: number of chunks of the time axis, a divisor of T; None takes the best
      (`kernels.scan_gpu.chunks.choose`).
    interpret: `plgpu.InterpretGPUParams()` to run without a GPU.
  """
  mosaic_gpu_scan.check_width("linear_scan", x)
  if reverse:
    # A flip copies the array (4 bytes per element), but no layer here runs backward in time.
    x, log_a, reset = (None if v is None else jnp.flip(v, 1) for v in (x, log_a, reset))
    h, h_last = scan(x, log_a, h0, reset, chunks=chunks, interpret=interpret)
    return jnp.flip(h, 1), h_last
  if h0 is None:
    h0 = jnp.zeros((x.shape[0], x.shape[2]), jnp.float32)
  if chunks is None:
    chunks = mosaic_gpu_chunks.choose(x.shape, max(x.dtype.itemsize, log_a.dtype.itemsize))
  reset = mosaic_gpu_chunks.split(reset, chunks)
  mask = None if reset is None else mosaic_gpu_scan.reset_log(reset)
  tiles = [mosaic_gpu_chunks.split(v, chunks) for v in (x, log_a)]
  arrays = manual_axes.vary_together(*tiles, h0.astype(jnp.float32), mask)
  h, h_last = _linear_scan(chunks, interpret, *arrays)
  return h.reshape(x.shape), h_last


@custom_vjp(nondiff_argnums=(0, 1))
def _linear_scan(chunks, interpret, x, log_a, h0, mask):
  return _forward(chunks, interpret, x, log_a, h0, mask)[:2]


def _forward(chunks, interpret, x, log_a, h0, mask):
  return mosaic_gpu_chunks.forward(
    coefficients,
    (x, log_a),
    (),
    mask,
    h0,
    chunks=chunks,
    flops=1,
    transcendentals=1,
    interpret=interpret,
  )


def _vjp_forward(chunks, interpret, x, log_a, h0, mask):
  h, h_last, carried = checkpoint_names.recurrence(*_forward(chunks, interpret, x, log_a, h0, mask))
  return (h, h_last), (log_a, mask, h, carried)


def _vjp_backward(chunks, interpret, saved, cotangents):
  log_a, mask, h, carried = saved
  dh, dh_last = cotangents
  (dx, dlog_a), _, dh0 = mosaic_gpu_chunks.backward(
    decay,
    gradients,
    (log_a,),
    (),
    mask,
    h,
    carried,
    dh,
    dh_last,
    chunks=chunks,
    decay_reads=0,
    dtypes=(h.dtype, log_a.dtype),
    summed=0,
    flops=4,
    transcendentals=1,
    interpret=interpret,
  )
  return dx, dlog_a, dh0, None if mask is None else jnp.zeros_like(mask)


_linear_scan.defvjp(_vjp_forward, _vjp_backward)
