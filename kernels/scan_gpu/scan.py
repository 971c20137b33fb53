"""The recurrence h_t = a_t * h_{t-1} + u_t and its gradient as Mosaic GPU kernels, from Hopper on.

One warpgroup runs 256 bfloat16 or 128 float32 channels of one batch row over all of T; the state
stays in registers. TMA keeps several tiles of each input in flight through shared memory (an H200
needs about 23 KB in flight per SM; with one step at a time it would be 3 KB). Results go from
registers to memory, in whole rows of 512 bytes.

Every thread reads and writes only its own channels, so the barriers that Mosaic would put around
each access (two per step) are left out. One dependence between threads remains: the copy that
refills a slot of the pipeline must wait until every thread has read the slot. `commit_smem` at the
end of a tile is that barrier, once per `TILE_STEPS` steps.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import manual_axes, platform

F32 = jnp.float32
TILE_STEPS = 32  # a tile of the reset mask then has 128 bytes, Mosaic's minimum for TMA
UNROLL = 4
SHARED_BYTES = 200 << 10  # of the 227 KB that a block may have on Hopper and Blackwell
# Added to log a at a reset: exp underflows to exactly 0. Finite, so that 0 * log a is not NaN.
RESET_LOG = -1e4


def unavailable_reason() -> str | None:
  """Returns why these kernels cannot run on the GPUs of this process.

  None if they can, or if there are no GPUs.
  """
  return platform.cuda_refusal(9, "Hopper")


def refusal(x: jax.Array, *_: Any) -> str | None:
  """Returns why these kernels cannot run on x [B, T, R]; None if they can."""
  if x.shape[1] == 1 or x.shape[2] % 128 == 0:
    return None  # a single step is plain XLA
  return f"needs a width (per shard) that is a multiple of 128, got {x.shape[2]}"


def check_width(name: str, x: jax.Array) -> None:
  """Raises ValueError unless the kernel of operation `name` supports the width of x [B, T, R]."""
  if reason := refusal(x):
    raise ValueError(f"{name}: the Mosaic GPU kernel {reason}. Change the width or its sharding.")


def reset_log(reset: jax.Array) -> jax.Array:
  """Converts resets [B, T] bool to terms [B, T'] float32 of log a; T' is T in whole tiles."""
  steps = reset.shape[1]
  mask = jnp.where(reset, RESET_LOG, 0.0).astype(F32)
  return jnp.pad(mask, ((0, 0), (0, -steps % TILE_STEPS)))


def channels_per_block(width: int, itemsize: int) -> int:
  """Returns the channels of a row of 512 bytes: two bfloat16 or one float32 channel per thread."""
  return 256 if width % 256 == 0 and itemsize == 2 else 128


class Block:
  """The part of the arrays that a warpgroup runs, and how its pipeline reads them."""

  def __init__(self, shape, arrays: int, itemsize: int):
    self.batch, self.steps, self.width = shape
    self.channels = channels_per_block(self.width, itemsize)
    self.tiles = self.steps // TILE_STEPS  # whole tiles; the rest is read without a pipeline
    tile_bytes = arrays * TILE_STEPS * self.channels * itemsize + TILE_STEPS * 4
    self.stages = max(1, min(6, self.tiles, SHARED_BYTES // tile_bytes))

  @property
  def grid(self):
    """Number of blocks (batch, width)."""
    return self.batch, self.width // self.channels

  def here(self):
    """Returns the batch row and the slice of channels of this warpgroup."""
    return lax.axis_index("batch"), pl.ds(lax.axis_index("width") * self.channels, self.channels)

  def specs(self, tiles: int, has_mask: bool, *, backward: bool):
    """Returns the block specs of `tiles` arrays and of the mask, for the pipeline."""
    row = lax.axis_index("batch")
    width = lax.axis_index("width")

    def when(s):
      return self.tiles - 1 - s if backward else s

    tile = plgpu.BlockSpec((None, TILE_STEPS, self.channels), lambda s: (row, when(s), width))
    mask = plgpu.BlockSpec((None, TILE_STEPS), lambda s: (row, when(s)))
    return [tile] * tiles + [mask] * has_mask


def call(body, inputs, outputs, block, *, flops, transcendentals, exact, interpret):
  """Calls `plgpu.kernel` on a block's grid; `exact` disables approximate tanh and exp."""
  moved = sum(a.size * jnp.dtype(a.dtype).itemsize for a in (*inputs, *outputs))
  options = {}
  if "cost_estimate" in inspect.signature(plgpu.kernel).parameters:  # since JAX 0.12
    options["cost_estimate"] = pl.CostEstimate(
      flops=flops, transcendentals=transcendentals, bytes_accessed=moved
    )
  if interpret is not None:
    options["interpret"] = interpret
  return plgpu.kernel(
    body,
    out_type=outputs,
    grid=block.grid,
    grid_names=("batch", "width"),
    compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True, approx_math=not exact),
    **options,
  )(*inputs)


def load(refs, *index):
  """Reads a row of channels from each ref, as float32."""
  return tuple(ref[index].astype(F32) for ref in refs)


def forward(coefficients, tiles, channels, mask, h0, *, flops, transcendentals, interpret=None):
  """Runs h_t = a_t * h_{t-1} + u_t.

  Args:
    coefficients: (tiles, channels, mask) -> (a, u), on float32 rows of channels; mask is a scalar
      to add to log a, or None.
    tiles: tuple of [B, T, R]; h has the dtype of the first.
    channels: tuple of [R] float32.
    mask: `reset_log` of the reset mask, or None.
    h0: [B, R] float32.
    flops, transcendentals: operations per element.
    interpret: `plgpu.InterpretGPUParams()` to run without a GPU.

  Returns:
    h: [B, T, R] and h_last: [B, R] float32.
  """
  dtype = tiles[0].dtype
  block = Block(tiles[0].shape, len(tiles), max(t.dtype.itemsize for t in tiles))
  masks = () if mask is None else (mask,)

  def body(*refs):
    tiles_g, channels_g, masks_g, (h0_g, h_g, h_last_g) = split(
      refs, len(tiles), len(channels), len(masks)
    )
    row, lanes = block.here()
    constants = tuple(ref[lanes] for ref in channels_g)

    def step(time, values, mask, h):
      a, u = coefficients(values, constants, mask)
      h = a * h + u
      h_g[row, time, lanes] = h.astype(dtype)
      return h

    def tile(indices, *refs_and_h):
      tiles_s, masks_s, (h,) = split(refs_and_h, len(tiles), len(masks))
      start = indices[0] * TILE_STEPS

      def group(k, h):
        for j in range(UNROLL):
          t = k * UNROLL + j
          h = step(start + t, load(tiles_s, t), scalar(masks_s, t), h)
        return h

      h = lax.fori_loop(0, TILE_STEPS // UNROLL, group, h)
      plgpu.commit_smem()
      return h

    h = h0_g[row, lanes]
    if block.tiles:
      h = plgpu.emit_pipeline(
        tile,
        grid=(block.tiles,),
        in_specs=block.specs(len(tiles), bool(masks), backward=False),
        max_concurrent_steps=block.stages,
        init_carry=h,
      )(*tiles_g, *masks_g)
    h_last_g[row, lanes] = lax.fori_loop(
      block.tiles * TILE_STEPS,
      block.steps,
      lambda t, h: step(t, load(tiles_g, row, t, lanes), scalar(masks_g, row, t), h),
      h,
    )

  elements = tiles[0].size
  return call(
    body,
    (*tiles, *channels, *masks, h0),
    (
      manual_axes.output(tiles[0].shape, dtype, tiles[0]),
      manual_axes.output(h0.shape, F32, tiles[0]),
    ),
    block,
    flops=(flops + 2) * elements,
    transcendentals=transcendentals * elements,
    exact=dtype == F32,
    interpret=interpret,
  )


def split(items, *counts):
  """Splits a sequence into tuples of these lengths and the rest."""
  parts = []
  for count in counts:
    parts.append(tuple(items[:count]))
    items = items[count:]
  return (*parts, tuple(items))


def scalar(masks, *index):
  """Returns the term to add to log a at one step; None without resets."""
  return masks[0][index] if masks else None


def backward(
  decay,
  gradients,
  tiles,
  channels,
  mask,
  h,
  h0,
  dh,
  dh_last,
  *,
  dtypes,
  summed,
  flops,
  transcendentals,
  interpret=None,
):
  """Computes the gradient of `forward` by g_t = dh_t + a_{t+1} g_{t+1}, from the last step on.

  Args:
    decay: (tiles, channels, mask) -> tuple of rows, of which the first is a.
    gradients: (tiles, channels, rows of `decay`, g, h_before) -> (gradients of tiles, terms of the
      sums per channel).
    tiles, channels, mask, h0: arguments of `forward`.
    h: result of `forward`.
    dh: [B, T, R] cotangent of h.
    dh_last: [B, R] float32 cotangent of h_last.
    dtypes: dtypes of the gradients of tiles.
    summed: number of sums over batch and time that `gradients` returns.
    flops, transcendentals: operations per element.
    interpret: see `forward`.

  Returns:
    dtiles: tuple of [B, T, R]; sums: tuple of [R] float32; dh0: [B, R] float32.
  """
  piped = (*tiles, h, dh)
  block = Block(h.shape, len(piped), max(t.dtype.itemsize for t in piped))
  masks = () if mask is None else (mask,)

  def body(*refs):
    piped_g, channels_g, masks_g, (h0_g, dh_last_g), dtiles_g, sums_g, (dh0_g,) = split(
      refs, len(piped), len(channels), len(masks), 2, len(dtypes), summed
    )
    tiles_g, h_g, dh_g = piped_g[:-2], piped_g[-2], piped_g[-1]
    row, lanes = block.here()
    constants = tuple(ref[lanes] for ref in channels_g)

    def step(time, values, mask, dh, h_before, carry):
      q, sums = carry  # q = a_{t+1} g_{t+1}
      kept = decay(values, constants, mask)
      g = dh + q
      rows, terms = gradients(values, constants, kept, g, h_before)
      for ref, value in zip(dtiles_g, rows, strict=True):
        ref[row, time, lanes] = value.astype(ref.dtype)
      return kept[0] * g, tuple(s + term for s, term in zip(sums, terms, strict=True))

    def state_before(time):
      """Reads h_{time - 1} from memory; h0 before the first step."""
      stored = h_g[row, lax.max(time - 1, 0), lanes].astype(F32)
      exists = (time > 0).astype(F32)  # a product: Mosaic has no select with a scalar condition
      return exists * stored + (1.0 - exists) * h0_g[row, lanes]

    def rest(i, carry):
      t = block.steps - 1 - i
      values, dh = load(tiles_g, row, t, lanes), dh_g[row, t, lanes].astype(F32)
      return step(t, values, scalar(masks_g, row, t), dh, state_before(t), carry)

    def tile(indices, *refs_and_carry):
      piped_s, masks_s, (carry,) = split(refs_and_carry, len(piped), len(masks))
      tiles_s, h_s, dh_s = piped_s[:-2], piped_s[-2], piped_s[-1]
      start = (block.tiles - 1 - indices[0]) * TILE_STEPS

      def at(t, carry, h_before):
        values, dh = load(tiles_s, t), dh_s[t].astype(F32)
        return step(start + t, values, scalar(masks_s, t), dh, h_before, carry)

      def group(k, carry):
        for j in range(UNROLL):
          t = TILE_STEPS - 1 - k * UNROLL - j
          carry = at(t, carry, h_s[t - 1].astype(F32))
        return carry

      carry = lax.fori_loop(0, TILE_STEPS // UNROLL - 1, group, carry)
      for t in range(UNROLL - 1, 0, -1):
        carry = at(t, carry, h_s[t - 1].astype(F32))
      carry = at(0, carry, state_before(start))
      plgpu.commit_smem()
      return carry

    q = dh_last_g[row, lanes]
    # Not zeros_like: a constant has another register layout, and a loop's carry must keep its own.
    carry = q, (0.0 * q,) * summed
    carry = lax.fori_loop(0, block.steps - block.tiles * TILE_STEPS, rest, carry)
    if block.tiles:
      carry = plgpu.emit_pipeline(
        tile,
        grid=(block.tiles,),
        in_specs=block.specs(len(piped), bool(masks), backward=True),
        max_concurrent_steps=block.stages,
        init_carry=carry,
      )(*piped_g, *masks_g)
    dh0_g[row, lanes], sums = carry
    for ref, value in zip(sums_g, sums, strict=True):
      ref[row, lanes] = value

  elements = h.size
  state = manual_axes.output(h0.shape, F32, h)
  outputs = call(
    body,
    (*piped, *channels, *masks, h0, dh_last),
    (*(manual_axes.output(h.shape, d, h) for d in dtypes), *(state,) * summed, state),
    block,
    flops=(flops + 3) * elements,
    transcendentals=transcendentals * elements,
    exact=h.dtype == F32,
    interpret=interpret,
  )
  dtiles, sums, (dh0,) = split(outputs, len(dtypes), summed)
  return dtiles, tuple(s.sum(0) for s in sums), dh0
