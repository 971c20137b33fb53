"""The fused RG-LRU (arXiv 2402.19427, equations 1-4) as Mosaic GPU kernels, for Hopper and later.

Memory traffic in bfloat16 as on the TPU: 8 bytes per element forward and 16 backward. If there are
too few rows and channels for the GPU, it is 14 and 20 (`kernels.scan_gpu.chunks`). Of the results,
only h is saved for the gradient. bfloat16 inputs use the GPU's approximate tanh and exp (2^-11
relative), float32 inputs do not.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from base.custom_gradient import custom_vjp
from kernels import checkpoint_names, manual_axes
from kernels.rg_lru import reference, tile_math
from kernels.scan_gpu import chunks as mosaic_gpu_chunks
from kernels.scan_gpu import scan
from kernels.scan_gpu.scan import refusal, unavailable_reason  # noqa: F401 - for platform


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


def fused(x, gate_a, gate_x, log_decay, h0, reset, *, chunks=None, interpret=None):
  """Runs the kernels for any T, with options for tests and benchmarks.

  Args:
    x, gate_a, gate_x, log_decay, h0, reset: see `kernels.rg_lru.rg_lru`.
    chunks: number of chunks of the time axis, a divisor of T; None takes the best
      (`kernels.scan_gpu.chunks.choose`).
    interpret: `plgpu.InterpretGPUParams()` to run without a GPU.
  """
  scan.check_width("rg_lru", x)
  if h0 is None:
    h0 = jnp.zeros((x.shape[0], x.shape[2]), jnp.float32)
  if chunks is None:
    chunks = mosaic_gpu_chunks.choose(x.shape, x.dtype.itemsize)
  tiles = [mosaic_gpu_chunks.split(v, chunks) for v in (x, gate_a, gate_x)]
  reset = mosaic_gpu_chunks.split(reset, chunks)
  mask = None if reset is None else scan.reset_log(reset)
  arithmetic = tile_math.Arithmetic(x.dtype == jnp.float32, False, True)
  arrays = manual_axes.vary_together(
    *tiles, log_decay.astype(jnp.float32), h0.astype(jnp.float32), mask
  )
  h, h_last = _rg_lru(chunks, arithmetic, interpret, *arrays)
  return h.reshape(x.shape), h_last


@custom_vjp(nondiff_argnums=(0, 1, 2))
def _rg_lru(chunks, arithmetic, interpret, x, gate_a, gate_x, log_decay, h0, mask):
  return _forward(chunks, arithmetic, interpret, x, gate_a, gate_x, log_decay, h0, mask)[:2]


def _forward(chunks, arithmetic, interpret, x, gate_a, gate_x, log_decay, h0, mask):
  return mosaic_gpu_chunks.forward(
    functools.partial(tile_math.coefficients, arithmetic),
    (x, gate_a, gate_x),
    tile_math.channels(arithmetic, log_decay),
    mask,
    h0,
    chunks=chunks,
    flops=18,
    transcendentals=5,
    interpret=interpret,
  )


def _vjp_forward(chunks, arithmetic, interpret, x, gate_a, gate_x, log_decay, h0, mask):
  h, h_last, carried = checkpoint_names.recurrence(
    *_forward(chunks, arithmetic, interpret, x, gate_a, gate_x, log_decay, h0, mask)
  )
  return (h, h_last), (x, gate_a, gate_x, log_decay, mask, h, carried)


def _vjp_backward(chunks, arithmetic, interpret, saved, cotangents):
  x, gate_a, gate_x, log_decay, mask, h, carried = saved
  dh, dh_last = cotangents
  (dx, dgate_a, dgate_x), (dlog_decay,), dh0 = mosaic_gpu_chunks.backward(
    functools.partial(tile_math.decay, arithmetic),
    functools.partial(tile_math.gradients, arithmetic),
    (x, gate_a, gate_x),
    tile_math.backward_channels(arithmetic, log_decay),
    mask,
    h,
    carried,
    dh,
    dh_last,
    chunks=chunks,
    decay_reads=1,
    dtypes=(x.dtype, gate_a.dtype, gate_x.dtype),
    summed=1,
    flops=36,
    transcendentals=5,
    interpret=interpret,
  )
  dmask = None if mask is None else jnp.zeros_like(mask)
  return dx, dgate_a, dgate_x, dlog_decay, dh0, dmask


_rg_lru.defvjp(_vjp_forward, _vjp_backward)
