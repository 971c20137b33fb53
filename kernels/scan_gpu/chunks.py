"""The recurrence on GPUs in two passes over time, for few rows and channels.

In `kernels.scan_gpu.scan` one warpgroup runs some channels of one row for all of T. At batch 2 and
width 2560 that is only 20 blocks for 132 multiprocessors. A reshape therefore cuts a row of T steps
into `chunks` rows of T / chunks steps. The state that enters each chunk is computed first:

1. each chunk runs from a state of zero, and writes only the product of its decays and its last
   state;
2. a scan of these pairs over the chunks (Blelloch 1990), in XLA, returns the state that enters each
   chunk;
3. the kernels of `kernels.scan_gpu.scan` run all chunks in parallel.

The backward pass does the same with the adjoint, from the last chunk to the first. It uses the
products of the decays of the forward pass. In bfloat16, rg_lru then moves 14 bytes per element
forward and 20 backward instead of 8 and 16, linear_scan 10 and 14 instead of 6 and 10.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import manual_axes
from kernels.linear_scan.associative import scan_decayed
from kernels.scan_gpu import scan
from kernels.scan_gpu.scan import F32, TILE_STEPS, UNROLL

# Of an H100 or H200. Each runs one block at a time: shared memory has no room for a second block.
MULTIPROCESSORS = 132
MIN_STEPS = 128  # in a chunk
# The start of a block, until its first tiles arrive: estimated as the time of two tiles.
FILL_STEPS = 64
PASSES = 1.75  # bytes in two passes divided by bytes in one, rg_lru forward


def choose(shape: tuple[int, int, int], itemsize: int) -> int:
  """Returns the number of chunks of the time axis; 1 if one pass is faster.

  Args:
    shape: (B, T, R).
    itemsize: bytes per element of the widest array.

  Returns:
    A power of two that divides T. An odd T is one chunk.
  """
  batch, steps, width = shape
  blocks = batch * (width // scan.channels_per_block(width, itemsize))

  def time(chunks):
    rounds = -(-blocks * chunks // MULTIPROCESSORS)
    return rounds * (steps // chunks + FILL_STEPS) * (PASSES if chunks > 1 else 1)

  options = [1]
  while steps % (2 * options[-1]) == 0 and steps // (2 * options[-1]) >= MIN_STEPS:
    options.append(2 * options[-1])
  return min(options, key=time)


def split(array: jax.Array | None, chunks: int) -> jax.Array | None:
  """Reshapes [B, T, ...] to [B chunks, T / chunks, ...]; None stays None."""
  if array is None:
    return None
  batch, steps = array.shape[:2]
  return array.reshape(batch * chunks, steps // chunks, *array.shape[2:])


class Carried(NamedTuple):
  """Results of the forward pass for the backward pass, each [B chunks, R] float32."""

  entering: jax.Array  # the state before each chunk
  product: jax.Array | None  # the product of each chunk's decays; None in one pass


def forward(
  coefficients, tiles, channels, mask, h0, *, chunks, flops, transcendentals, interpret=None
):
  """Runs `kernels.scan_gpu.scan.forward` over arrays that `split` has reshaped.

  Args:
    coefficients, channels, flops, transcendentals, interpret: see there.
    tiles: tuple of [B chunks, T / chunks, R].
    mask: `kernels.scan_gpu.scan.reset_log` of the reshaped reset mask, or None.
    h0: [B, R] float32.
    chunks: number of chunks of each row.

  Returns:
    h: [B chunks, T / chunks, R], h_last: [B, R] float32, and `Carried`.
  """
  entering, product = h0, None
  if chunks > 1:

    def advance(values, constants, mask, carry):
      h, product = carry
      a, u = coefficients(values, constants, mask)
      return a * h + u, a * product

    zeros = jnp.zeros_like(h0, shape=(h0.shape[0] * chunks, h0.shape[1]))
    last, product = _summarize(
      advance,
      tiles,
      channels,
      mask,
      (zeros, zeros + 1),
      backward=False,
      flops=flops + 3,
      transcendentals=transcendentals,
      exact=tiles[0].dtype == F32,
      interpret=interpret,
    )
    entering = _entering(product, last, h0, backward=False)
  h, last = scan.forward(
    coefficients,
    tiles,
    channels,
    mask,
    entering,
    flops=flops,
    transcendentals=transcendentals,
    interpret=interpret,
  )
  return h, _of_rows(last, chunks)[:, -1], Carried(entering, product)


def backward(
  decay,
  gradients,
  tiles,
  channels,
  mask,
  h,
  carried,
  dh,
  dh_last,
  *,
  chunks,
  decay_reads,
  dtypes,
  summed,
  flops,
  transcendentals,
  interpret=None,
):
  """Computes the gradient of `forward`; see `kernels.scan_gpu.scan.backward`.

  Args:
    decay, gradients, channels, dtypes, summed, flops, transcendentals, interpret: see there.
    tiles, mask, chunks: arguments of `forward`.
    h, carried: results of `forward`.
    dh: [B chunks, T / chunks, R] cotangent of h.
    dh_last: [B, R] float32 cotangent of h_last.
    decay_reads: index of the only tile that `decay` reads.

  Returns:
    dtiles: tuple of [B chunks, T / chunks, R]; sums: tuple of [R] float32; dh0: [B, R] float32.
  """
  if chunks > 1:

    def advance(values, constants, mask, carry):
      read, dh = values
      given = [None] * len(tiles)
      given[decay_reads] = read
      return (decay(tuple(given), constants, mask)[0] * (dh + carry[0]),)

    (leaving,) = _summarize(
      advance,
      (tiles[decay_reads], dh),
      channels,
      mask,
      (jnp.zeros_like(carried.entering),),
      backward=True,
      flops=8,
      transcendentals=2,
      exact=h.dtype == F32,
      interpret=interpret,
    )
    dh_last = _entering(carried.product, leaving, dh_last, backward=True)
  dtiles, sums, dh0 = scan.backward(
    decay,
    gradients,
    tiles,
    channels,
    mask,
    h,
    carried.entering,
    dh,
    dh_last,
    dtypes=dtypes,
    summed=summed,
    flops=flops,
    transcendentals=transcendentals,
    interpret=interpret,
  )
  return dtiles, sums, _of_rows(dh0, chunks)[:, 0]


def _of_rows(array, chunks):
  """Reshapes [B chunks, R] to [B, chunks, R]."""
  return array.reshape(-1, chunks, array.shape[-1])


def _entering(product, value, first, *, backward):
  """Returns the state that enters each chunk, if a chunk maps a state s to `product * s + value`.

  Args:
    product, value: [B chunks, R].
    first: [B, R] state that enters the first chunk, or the last one if backward.
    backward: run from the last chunk to the first.

  Returns:
    [B chunks, R].
  """
  chunks = value.shape[0] // first.shape[0]
  product, value = _of_rows(product, chunks), _of_rows(value, chunks)
  if backward:
    after, _ = scan_decayed(value[:, 1:], product[:, 1:], first, reverse=True)
    entering = jnp.concatenate([after, first[:, None]], axis=1)
  else:
    after, _ = scan_decayed(value[:, :-1], product[:, :-1], first, reverse=False)
    entering = jnp.concatenate([first[:, None], after], axis=1)
  return entering.reshape(value.shape[0] * chunks, -1)


def _summarize(
  advance,
  tiles,
  channels,
  mask,
  initial,
  *,
  backward,
  flops,
  transcendentals,
  exact,
  interpret,
):
  """Runs `advance` over the steps of every row and returns the last carry.

  Args:
    advance: (values, channels, mask, carry) -> carry, on float32 rows of channels.
    tiles: tuple of [B, T, R].
    channels: tuple of [R].
    mask: see `kernels.scan_gpu.scan.forward`.
    initial: tuple of [B, R] float32, the carry before the first step (the last step if backward).
    backward: run from the last step to the first.
    flops, transcendentals: operations per element.
    exact, interpret: see `kernels.scan_gpu.scan.call`.

  Returns:
    Tuple of [B, R] float32.
  """
  block = scan.Block(tiles[0].shape, len(tiles), max(t.dtype.itemsize for t in tiles))
  masks = () if mask is None else (mask,)
  whole = block.tiles * TILE_STEPS

  def body(*refs):
    tiles_g, channels_g, masks_g, initial_g, final_g = scan.split(
      refs, len(tiles), len(channels), len(masks), len(initial)
    )
    row, lanes = block.here()
    constants = tuple(ref[lanes] for ref in channels_g)

    def rest(i, carry):
      t = block.steps - 1 - i if backward else whole + i
      values = scan.load(tiles_g, row, t, lanes)
      return advance(values, constants, scan.scalar(masks_g, row, t), carry)

    def tile(indices, *refs_and_carry):
      tiles_s, masks_s, (carry,) = scan.split(refs_and_carry, len(tiles), len(masks))

      def group(k, carry):
        for j in range(UNROLL):
          t = k * UNROLL + j
          t = TILE_STEPS - 1 - t if backward else t
          carry = advance(scan.load(tiles_s, t), constants, scan.scalar(masks_s, t), carry)
        return carry

      carry = lax.fori_loop(0, TILE_STEPS // UNROLL, group, carry)
      plgpu.commit_smem()
      return carry

    def whole_tiles(carry):
      return plgpu.emit_pipeline(
        tile,
        grid=(block.tiles,),
        in_specs=block.specs(len(tiles), bool(masks), backward=backward),
        max_concurrent_steps=block.stages,
        init_carry=carry,
      )(*tiles_g, *masks_g)

    carry = tuple(ref[row, lanes] for ref in initial_g)
    if block.tiles and not backward:
      carry = whole_tiles(carry)
    carry = lax.fori_loop(0, block.steps - whole, rest, carry)
    if block.tiles and backward:
      carry = whole_tiles(carry)
    for ref, value in zip(final_g, carry, strict=True):
      ref[row, lanes] = value

  elements = tiles[0].size
  return scan.call(
    body,
    (*tiles, *channels, *masks, *initial),
    tuple(manual_axes.output(v.shape, F32, tiles[0]) for v in initial),
    block,
    flops=flops * elements,
    transcendentals=transcendentals * elements,
    exact=exact,
    interpret=interpret,
  )
