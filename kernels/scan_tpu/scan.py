"""The recurrence h_t = a_t * h_{t-1} + u_t and its gradient as Pallas TPU kernels.

The caller passes the functions that compute a_t and u_t. They work on [chunk, 128] float32 tiles,
one slab at a time (a whole [chunk, R] at once spills registers: 11 instead of 9 bundles per 1024
elements on v5e). `kernels.scan_tpu.blocks` describes the layout of a block and the end of T.

Saved for the gradient: h, and the float32 state that enters each time block.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.scan_tpu import blocks as tpu_blocks
from kernels.scan_tpu.blocks import LANES, SUBLANES, Blocks

F32 = jnp.float32


def _load(refs, row, rows, lanes):
  return tuple(ref[row, rows, lanes].astype(F32) for ref in refs)


def _channels(refs, lanes):
  return tuple(ref[:, lanes] for ref in refs)


def _mask(mask_rows, row, rows):
  return None if mask_rows is None else mask_rows[row, rows, :]


def _scratch_state(blocks):
  return pltpu.VMEM((blocks.slabs, LANES), F32)


def _scratch_mask(blocks, mask):
  return None if mask is None else pltpu.VMEM((blocks.batch, blocks.time, LANES), F32)


# Forward


def _forward_kernel(
  tiles,
  channels,
  mask,
  h0,
  h,
  h_last,
  entries,
  decay,
  drive,
  state,
  mask_rows,
  *,
  coefficients,
  blocks,
  steps,
):
  chunk, step_rows = blocks.chunk, functools.partial(tpu_blocks.step_rows, blocks)
  block, blocks_in_time = pl.program_id(2), pl.cdiv(steps, blocks.time)

  @pl.when(block == 0)
  def _():
    state[...] = tpu_blocks.read_state(h0, blocks)

  if entries is not None:
    tpu_blocks.write_state(entries.at[:, 0], state[...], blocks)
  if mask is not None:
    tpu_blocks.expand_reset(mask, mask_rows, blocks)

  def one_chunk(index, carry):
    rows = pl.ds(pl.multiple_of(index * chunk, chunk), chunk)
    carry = list(carry)

    def prepare(slab, row, lanes):
      here = tpu_blocks.slab_rows(blocks, slab)
      decay[here, :], drive[here, :] = coefficients(
        _load(tiles, row, rows, lanes), _channels(channels, lanes), _mask(mask_rows, row, rows)
      )

    def recur(register, steps):
      for step in steps:
        here = step_rows(step, register)
        carry[register] = decay[here, :] * carry[register] + drive[here, :]
        drive[here, :] = carry[register]

    def finish(slab, row, lanes):
      h[row, rows, lanes] = drive[tpu_blocks.slab_rows(blocks, slab), :].astype(h.dtype)

    tpu_blocks.stagger(blocks, prepare, recur, finish)
    return tuple(carry)

  # The last block stops with the chunk that contains step T-1.
  in_last = pl.cdiv(steps - (blocks_in_time - 1) * blocks.time, chunk)
  chunks = _select_last(block == blocks_in_time - 1, in_last, blocks.time // chunk)
  _loop(chunks, one_chunk, state)

  @pl.when(block == blocks_in_time - 1)
  def _():
    last = drive[step_rows((steps - 1) % chunk), :]
    tpu_blocks.write_state(h_last, last, blocks)


def _loop(chunks, one_chunk, state) -> None:
  """Runs `one_chunk(index, carry)`; the carry starts and ends as `state`, split into registers."""
  carry = jax.lax.fori_loop(0, chunks, one_chunk, tpu_blocks.split_state(state[...]))
  state[...] = jnp.concatenate(carry, axis=0)


def _select_last(is_last, in_last: int, in_others: int):
  """Returns the number of chunks in a block.

  It is a Python int if all blocks have the same number, for a loop of static length.
  """
  return in_others if in_last == in_others else jnp.where(is_last, in_last, in_others)


def forward(
  coefficients,
  tiles,
  channels,
  mask,
  h0,
  *,
  blocks: Blocks,
  name,
  save_entries,
  flops,
  transcendentals,
  interpret,
):
  """Runs h_t = a_t * h_{t-1} + u_t.

  Args:
    coefficients: (tiles, channels, mask) -> (a, u), on float32 tiles: tiles, mask, a and u are
      [chunk, 128], channels are [1, 128]; mask is the term to add to log a, None without resets.
    tiles: tuple of [B, T, R]; h has the dtype of the first.
    channels: tuple of [1, R] float32.
    mask: `kernels.scan_tpu.blocks.reset_log` of the reset mask, or None.
    h0: [B, R] float32.
    blocks: the block of one grid step.
    name: name of the kernel in profiles.
    save_entries: also return the state that enters each time block.
    flops, transcendentals: operations per element.
    interpret: passed to pallas_call.

  Returns:
    h: [B, T, R], h_last: [B, R] float32, entries: [B, time blocks, 1, R] float32 or None.
  """
  batch, steps, width = tiles[0].shape
  time_blocks = pl.cdiv(steps, blocks.time)
  specs = tpu_blocks.block_specs(blocks, time_blocks, backward=False)
  elements = batch * steps * width
  entries = ((batch, time_blocks, 1, width), F32, specs.entries) if save_entries else None
  h, h_last, entries = tpu_blocks.call(
    functools.partial(_forward_kernel, coefficients=coefficients, blocks=blocks, steps=steps),
    name=name,
    grid=(batch // blocks.batch, width // (blocks.groups * LANES), time_blocks),
    inputs=(
      tuple((t, specs.tile) for t in tiles),
      tuple((c, specs.channel) for c in channels),
      None if mask is None else (mask, specs.mask),
      (h0[:, None], specs.state),
    ),
    outputs=(
      (tiles[0].shape, tiles[0].dtype, specs.tile),
      ((batch, 1, width), F32, specs.state),
      entries,
    ),
    scratch=[
      tpu_blocks.scratch_rows(blocks),
      tpu_blocks.scratch_rows(blocks),
      _scratch_state(blocks),
      _scratch_mask(blocks, mask),
    ],
    flops=(flops + 2) * elements,
    transcendentals=transcendentals * elements,
    like=tiles[0],
    interpret=interpret,
  )
  return h, h_last[:, 0], entries


# Backward


def _backward_kernel(
  tiles,
  channels,
  mask,
  h,
  dh,
  entries,
  dh_last,
  dtiles,
  dchannels,
  dh0,
  kept,
  grad,
  before,
  state,
  mask_rows,
  *,
  decay,
  gradients,
  blocks,
  steps,
):
  """Runs the adjoint g_t = dh_t + a_{t+1} g_{t+1}, from the last step to the first.

  `state` carries a_{t+1} g_{t+1}. `before` holds h_{t-1}: for each slab, 8 rows that end with the
  step before the chunk, then the rows of the chunk.
  """
  chunk, step_rows = blocks.chunk, functools.partial(tpu_blocks.step_rows, blocks)
  block, blocks_in_time = pl.program_id(2), pl.cdiv(steps, blocks.time)

  @pl.when(block == 0)
  def _():
    state[...] = tpu_blocks.read_state(dh_last, blocks)
    for ref in dchannels:
      ref[...] = jnp.zeros_like(ref)

  if mask is not None:
    tpu_blocks.expand_reset(mask, mask_rows, blocks)

  def one_chunk(index, carry, valid=chunk):
    """Runs backward through a chunk, of which only the first `valid` (static) steps exist."""

    def real(tile, otherwise):
      if valid == chunk:
        return tile
      exists = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 0) < valid
      return jnp.where(exists, tile, otherwise)

    rows = pl.ds(pl.multiple_of(index * chunk, chunk), chunk)
    # The 8 rows before the chunk. At the block's start they are any rows, and `entries` replaces
    # them.
    rows_before = pl.ds(
      pl.multiple_of(jnp.maximum(index * chunk - SUBLANES, 0), SUBLANES), SUBLANES
    )
    carry = list(carry)

    def prepare(slab, row, lanes):
      here = tpu_blocks.slab_rows(blocks, slab)
      values = decay(
        _load(tiles, row, rows, lanes), _channels(channels, lanes), _mask(mask_rows, row, rows)
      )
      for ref, value in zip(kept, values, strict=True):
        ref[here, :] = real(value, 1.0)
      grad[here, :] = real(dh[row, rows, lanes].astype(F32), 0.0)
      # Selected, not stored under a condition: a branch would split the compiler's schedule.
      before[pl.ds(slab * (chunk + SUBLANES), SUBLANES), :] = jnp.where(
        index == 0, entries[row, 0, :, lanes], h[row, rows_before, lanes].astype(F32)
      )

    def recur(register, steps):
      for step in steps:
        here = step_rows(chunk - 1 - step, register)
        g = grad[here, :] + carry[register]
        grad[here, :] = g
        carry[register] = kept[0][here, :] * g

    def finish(slab, row, lanes):
      here = tpu_blocks.slab_rows(blocks, slab)
      start = slab * (chunk + SUBLANES)
      before[pl.ds(start + SUBLANES, chunk), :] = h[row, rows, lanes].astype(F32)
      elementwise, per_channel = gradients(
        _load(tiles, row, rows, lanes),
        _channels(channels, lanes),
        tuple(ref[here, :] for ref in kept),
        grad[here, :],
        before[pl.ds(start + SUBLANES - 1, chunk), :],
      )
      for ref, value in zip(dtiles, elementwise, strict=True):
        ref[row, rows, lanes] = value.astype(ref.dtype)
      for ref, value in zip(dchannels, per_channel, strict=True):
        ref[row, :, lanes] += _sum_registers(real(value, 0.0))

    tpu_blocks.stagger(blocks, prepare, recur, finish)
    return tuple(carry)

  # The first visited block is the last in time; only there can a chunk extend past the end.
  in_last, hanging = divmod(steps - (blocks_in_time - 1) * blocks.time, chunk)
  if hanging:

    @pl.when(block == 0)
    def _():
      carry = tpu_blocks.split_state(state[...])
      carry = one_chunk(jnp.int32(in_last), carry, valid=hanging)
      state[...] = jnp.concatenate(carry, axis=0)

  chunks = _select_last(block == 0, in_last, blocks.time // chunk)
  _loop(chunks, lambda i, carry: one_chunk(chunks - 1 - i, carry), state)

  @pl.when(block == blocks_in_time - 1)
  def _():
    tpu_blocks.write_state(dh0, state[...], blocks)


def _sum_registers(tile):
  """Sums [chunk, 128] to [8, 128] in whole registers; XLA later sums over sublanes."""
  return sum(tile[i : i + SUBLANES] for i in range(0, tile.shape[0], SUBLANES))


def backward(
  decay,
  gradients,
  tiles,
  channels,
  mask,
  h,
  entries,
  dh,
  dh_last,
  *,
  blocks: Blocks,
  name,
  dtypes,
  kept,
  summed,
  flops,
  transcendentals,
  interpret,
):
  """Computes the gradient of `forward`.

  Args:
    decay: (tiles, channels, mask) -> `kept` tiles, of which the first is a; they stay in VMEM until
      `gradients`.
    gradients: (tiles, channels, kept, g, h_before) -> (gradients of tiles, terms of the sums per
      channel), each a tuple of [chunk, 128] tiles; g is the gradient of u_t, h_before is h_{t-1}.
    tiles, channels, mask: arguments of `forward`.
    h, entries: results of `forward`.
    dh: [B, T, R] cotangent of h.
    dh_last: [B, R] float32 cotangent of h_last.
    blocks: the block of one grid step, with the `time` of `forward` (`entries` depends on it).
    name: name of the kernel in profiles.
    dtypes: dtypes of the gradients of tiles.
    kept: number of tiles that `decay` returns.
    summed: number of sums over batch and time that `gradients` returns.
    flops, transcendentals: operations per element.
    interpret: passed to pallas_call.

  Returns:
    dtiles: tuple of [B, T, R]; sums: tuple of [R] float32; dh0: [B, R] float32.
  """
  batch, steps, width = h.shape
  time_blocks = pl.cdiv(steps, blocks.time)
  specs = tpu_blocks.block_specs(blocks, time_blocks, backward=True)
  elements = batch * steps * width
  before_rows = blocks.slabs * (blocks.chunk + SUBLANES)
  dtiles, sums, dh0 = tpu_blocks.call(
    functools.partial(
      _backward_kernel, decay=decay, gradients=gradients, blocks=blocks, steps=steps
    ),
    name=name,
    grid=(batch // blocks.batch, width // (blocks.groups * LANES), time_blocks),
    inputs=(
      tuple((t, specs.tile) for t in tiles),
      tuple((c, specs.channel) for c in channels),
      None if mask is None else (mask, specs.mask),
      (h, specs.tile),
      (dh, specs.tile),
      (entries, specs.entries),
      (dh_last[:, None], specs.state),
    ),
    outputs=(
      tuple((h.shape, dtype, specs.tile) for dtype in dtypes),
      tuple(((batch, SUBLANES, width), F32, specs.channel_sum) for _ in range(summed)),
      ((batch, 1, width), F32, specs.state),
    ),
    scratch=[
      [tpu_blocks.scratch_rows(blocks) for _ in range(kept)],
      tpu_blocks.scratch_rows(blocks),
      pltpu.VMEM((before_rows, LANES), F32),
      _scratch_state(blocks),
      _scratch_mask(blocks, mask),
    ],
    flops=(flops + 3) * elements,
    transcendentals=transcendentals * elements,
    like=h,
    interpret=interpret,
  )
  return dtiles, tuple(s.sum((0, 1)) for s in sums), dh0[:, 0]
