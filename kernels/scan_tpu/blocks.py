"""How a gated linear recurrence runs on a TPU core: what linear_scan and rg_lru share there.

The recurrence h_t = a_t * h_{t-1} + u_t reads and writes [B, T, R] arrays in their natural layout,
so XLA places no relayout copy around the kernel. In that layout a vector register holds 8 time
steps of 128 channels, while the recurrence wants one time step of 8 x 128 channels. The turn
happens in VMEM:

* a block is `batch` rows x `time` steps x `groups` groups of 128 channels; a *slab* is one (row,
  group);
* a chunk of `chunk` steps of each slab is computed in the natural layout (the element-wise gate
  mathematics) and stored in float32 scratch, slab after slab, `chunk + 1` rows apart;
* a strided load with that stride then returns one time step of all slabs. The stride is odd, so it
  is a single load without bank conflicts; with an even stride the compiler splits it in two to
  four.

The grid is (batch, width, time). Time is sequential and carries the state in scratch; batch and
width are parallel, which lets v4 and v5p split them over their two cores.

T need not be a multiple of anything: the last block hangs over the end of the arrays, where reads
give rubbish and writes are dropped. Going forward rubbish cannot reach an earlier step; going
backward the one chunk that straddles the end is masked, outside the inner loop.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import manual_axes, platform

LANES = 128  # channels in a vector register
SUBLANES = 8  # its other axis: time steps in HBM's layout, slabs in the recurrence
CHUNK = 32  # steps between turns; 16 and 64 cost within 10% of it, 64 in twice the code
MAX_SLABS = 32  # four registers of state
# Compilers before v6e give a kernel 16 MB of VMEM unless told otherwise; the rest is slack for
# spills.
VMEM_BYTES = 14 << 20
# Added to log a at a reset: exp underflows to exactly 0. Finite, so that 0 * log a stays a number.
RESET_LOG = -1e4


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The share of [B, T, R] that one grid step works on."""

  batch: int  # rows; divides B
  time: int  # steps; a multiple of 128, since the reset mask travels in rows of 128 lanes
  groups: int  # groups of 128 channels; divides R / 128
  chunk: int = CHUNK  # steps per turn; a multiple of 8, divides `time`

  @property
  def slabs(self) -> int:
    return self.batch * self.groups

  @property
  def stride(self) -> int:
    return self.chunk + 1

  def each_slab(self):
    """Yields (index of the slab, batch row, slice of the block's channels)."""
    for slab in range(self.slabs):
      row, group = divmod(slab, self.groups)
      yield slab, row, slice(group * LANES, (group + 1) * LANES)

  def registers(self):
    """The slabs, eight at a time: those whose states share a vector register."""
    slabs = list(self.each_slab())
    return [slabs[i : i + SUBLANES] for i in range(0, len(slabs), SUBLANES)]


def check_width(name: str, width: int) -> None:
  if width % LANES:
    raise ValueError(
      f"{name}: the Pallas TPU kernel needs a width (per shard) that is a multiple of {LANES}, got "
      f"{width}. Change the width or its sharding, or use implementation='associative'."
    )


class Plan(NamedTuple):
  """The blocks of both directions. The states saved between them tie their `time` together."""

  forward: Blocks
  backward: Blocks


def plan(
  shape: tuple[int, int, int], itemsize: int, *, forward_arrays: int, backward_arrays: int
) -> Plan:
  """Picks the blocks for arrays of shape [B, T, R], R a multiple of 128.

  Args:
    shape: (B, T, R).
    itemsize: bytes per element of these arrays.
    forward_arrays: how many of them the forward kernel reads and writes.
    backward_arrays: the same for the backward kernel.
  """
  backward = choose_blocks(shape, itemsize, backward_arrays)
  return Plan(choose_blocks(shape, itemsize, forward_arrays, backward.time), backward)


def choose_blocks(
  shape: tuple[int, int, int], itemsize: int, arrays: int, time: int | None = None
) -> Blocks:
  """Picks the block for one kernel; `time` fixes its length in steps.

  Four registers of state (32 slabs) hide the latency of the multiply-add chain; a number of slabs
  that is no multiple of 8 leaves a register part empty; an odd number of blocks leaves one of two
  cores idle for a turn.
  """
  batch, steps, width = shape
  all_groups = width // LANES

  def cost(rows, groups):
    slabs = rows * groups
    registers = -(-slabs // SUBLANES)
    # Bundles per 1024 elements: about 8 for the gates however they are blocked, and for each step
    # of the chain one per register, but no less than the 4 of its latency.
    bundles = 8 + max(4, registers) * SUBLANES / slabs
    blocks = (batch // rows) * (all_groups // groups)
    return bundles * (-(-blocks // 2) * 2 / blocks), rows

  options = [
    (rows, groups)
    for groups in range(1, min(all_groups, MAX_SLABS) + 1)
    for rows in (1, 2, 4, 8, 16, 32)
    if all_groups % groups == 0 and batch % rows == 0 and rows * groups <= MAX_SLABS
  ]
  for rows, groups in sorted(options, key=lambda option: cost(*option)):
    # Small blocks take more steps at a time, for half a megabyte or more per array and grid step.
    for length in (1024, 512, 256, 128) if time is None else (time,):
      blocks = Blocks(rows, length, groups)
      too_long = length > LANES and (length >= 2 * steps or length * blocks.slabs > 2048)
      if (time or not too_long) and _vmem_bytes(blocks, itemsize, arrays) <= VMEM_BYTES:
        return blocks
  raise AssertionError("one slab always fits")


def _vmem_bytes(blocks: Blocks, itemsize: int, arrays: int) -> int:
  window = blocks.batch * blocks.time * blocks.groups * LANES * itemsize
  scratch = 4 * blocks.slabs * (blocks.chunk + SUBLANES) * LANES * 4
  mask = blocks.batch * blocks.time * LANES * 4
  return 2 * arrays * window + scratch + mask  # twice: one window computes while the next arrives


def scratch_rows(blocks: Blocks) -> pl.MemoryRef:
  """float32 scratch for one chunk of all slabs, `stride` rows apart."""
  rows = -(-blocks.slabs * blocks.stride // SUBLANES) * SUBLANES
  return pltpu.VMEM((rows, LANES), jnp.float32)


def slab_rows(blocks: Blocks, slab: int) -> slice | pl.Slice:
  """The rows of scratch that hold one slab's chunk."""
  return pl.ds(slab * blocks.stride, blocks.chunk)


def step_rows(blocks: Blocks, step: int, register: int | None = None) -> slice | pl.Slice:
  """The rows of scratch that hold one time step of a register's slabs, or of all slabs."""
  first = 0 if register is None else register * SUBLANES
  count = blocks.slabs if register is None else min(SUBLANES, blocks.slabs - first)
  return pl.ds(first * blocks.stride + step, count, stride=blocks.stride)


def split_state(state: jax.Array) -> tuple[jax.Array, ...]:
  """[slabs, 128] -> one array per register, the last perhaps shorter."""
  return tuple(state[i : i + SUBLANES] for i in range(0, state.shape[0], SUBLANES))


def stagger(blocks: Blocks, prepare, recur, finish) -> None:
  """Emits the work on a chunk so that the compiler finds independent instructions side by side.

  The recurrence waits for its own multiplication and addition; the mathematics before and after it
  waits for nothing. So while the states of one register recur, the slabs of the next are prepared
  and those of the one before are finished. Written stage after stage the compiler leaves them
  apart, which costs v4 16.9 instead of 15.4 bundles per 1024 elements forward, and v5e 8.5 instead
  of 7.7.

  Args:
    blocks: what one grid step works on.
    prepare: `(slab, row, lanes)`, the first stage of a slab.
    recur: `(register, steps)`, a range of the chunk's steps for the slabs of a register.
    finish: like `prepare`, the last stage.
  """
  registers = blocks.registers()
  steps = blocks.chunk // SUBLANES
  for stage in range(len(registers) + 2):
    for turn in range(SUBLANES):
      if stage < len(registers) and turn < len(registers[stage]):
        prepare(*registers[stage][turn])
      if 0 <= stage - 1 < len(registers):
        recur(stage - 1, range(turn * steps, (turn + 1) * steps))
      if stage - 2 >= 0 and turn < len(registers[stage - 2]):
        finish(*registers[stage - 2][turn])


def read_state(ref, blocks: Blocks) -> jax.Array:
  """[batch, 1, groups * 128] -> [slabs, 128], one row per slab."""
  return jnp.concatenate([ref[row, :, lanes] for _, row, lanes in blocks.each_slab()], axis=0)


def write_state(ref, state: jax.Array, blocks: Blocks) -> None:
  for slab, row, lanes in blocks.each_slab():
    ref[row, :, lanes] = state[slab : slab + 1]


def reset_log(reset: jax.Array, blocks: Blocks) -> jax.Array:
  """[B, T] bool -> float32 [B, T'/128, 1, 128] to add to log a.

  T' is T rounded up to whole blocks.
  """
  steps = reset.shape[1]
  padded = pl.cdiv(steps, blocks.time) * blocks.time
  mask = jnp.pad(jnp.where(reset, RESET_LOG, 0.0), ((0, 0), (0, padded - steps)))
  return mask.astype(jnp.float32).reshape(reset.shape[0], -1, 1, LANES)


def expand_reset(mask_ref, rows_ref, blocks: Blocks) -> None:
  """Turns the lanes of the mask into rows, as the gate mathematics needs it: [batch, time, 128]."""
  for row in range(blocks.batch):
    for part in range(blocks.time // LANES):
      square = jnp.broadcast_to(mask_ref[row, part], (LANES, LANES))
      rows_ref[row, part * LANES : (part + 1) * LANES, :] = square.T


@dataclasses.dataclass(frozen=True)
class Specs:
  """How each kind of array is cut along the grid (batch, width, time)."""

  tile: pl.BlockSpec  # [B, T, R]
  state: pl.BlockSpec  # [B, 1, R]
  entries: pl.BlockSpec  # [B, number of time blocks, 1, R]
  channel: pl.BlockSpec  # [1, R]
  channel_sum: pl.BlockSpec  # [B, 8, R]
  mask: pl.BlockSpec  # [B, T'/128, 1, 128]


def block_specs(blocks: Blocks, time_blocks: int, *, backward: bool) -> Specs:
  batch, time, width = blocks.batch, blocks.time, blocks.groups * LANES

  def when(s):
    return time_blocks - 1 - s if backward else s

  return Specs(
    tile=pl.BlockSpec((batch, time, width), lambda b, r, s: (b, when(s), r)),
    state=pl.BlockSpec((batch, 1, width), lambda b, r, s: (b, 0, r)),
    entries=pl.BlockSpec((batch, 1, 1, width), lambda b, r, s: (b, when(s), 0, r)),
    channel=pl.BlockSpec((1, width), lambda b, r, s: (0, r)),
    channel_sum=pl.BlockSpec((batch, SUBLANES, width), lambda b, r, s: (b, 0, r)),
    mask=pl.BlockSpec((batch, time // LANES, 1, LANES), lambda b, r, s: (b, when(s), 0, 0)),
  )


def call(kernel, *, name, grid, inputs, outputs, scratch, flops, transcendentals, like, interpret):
  """`pl.pallas_call` with what every recurrence kernel needs.

  Args:
    kernel: the kernel body; receives inputs, outputs and scratch as the pytrees given here.
    name: shown in profiles and dumps.
    grid: (batch blocks, width blocks, time blocks).
    inputs: pytree of (array, BlockSpec); None where an input is absent.
    outputs: pytree of (shape, dtype, BlockSpec).
    scratch: pytree of memory spaces, None where absent.
    flops, transcendentals: per call, for XLA's scheduler (without them it takes the call as free).
    like: array whose manual mesh axes the outputs share.
    interpret: run as plain XLA operations, for tests without a TPU.
  """

  def is_leaf(node):
    return isinstance(node, tuple) and len(node) > 1 and isinstance(node[-1], pl.BlockSpec)

  def pick(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree, is_leaf=is_leaf)

  arrays = pick(inputs, 0)
  shapes = jax.tree.map(lambda o: manual_axes.output(o[0], o[1], like), outputs, is_leaf=is_leaf)
  moved = sum(a.size * jnp.dtype(a.dtype).itemsize for a in jax.tree.leaves((arrays, shapes)))
  return pl.pallas_call(
    kernel,
    name=name,
    grid=grid,
    in_specs=pick(inputs, 1),
    out_specs=pick(outputs, 2),
    out_shape=shapes,
    scratch_shapes=scratch,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary"),
    ),
    cost_estimate=pl.CostEstimate(
      flops=flops, transcendentals=transcendentals, bytes_accessed=moved
    ),
    interpret=interpret,
  )(*arrays)


def has_native_math() -> bool:
  """Whether programs are built for a TPU with sigmoid and rsqrt as instructions: v6e and later.

  False where its kind is not known: the formulas for older chips are right on all of them.
  """
  kind = platform.device_kind().lower()
  if platform.target() != "tpu" or not kind:
    return False
  return not any(old in kind for old in ("v2", "v3", "v4", "v5"))
