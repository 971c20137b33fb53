"""Blocks, memory layout and schedule of gated linear recurrences on a TPU core.

The kernels of linear_scan and rg_lru share this code. The recurrence h_t = a_t * h_{t-1} + u_t
reads and writes [B, T, R] arrays in their natural layout, so XLA needs no relayout copy around the
kernel. In that layout a vector register holds 8 time steps of 128 channels, but the recurrence
needs one time step of 8 x 128 channels. The data are transposed in VMEM:

* a block is `batch` rows x `time` steps x `groups` groups of 128 channels; a *slab* is one group of
  one row;
* for each slab, a chunk of `chunk` steps is computed in the natural layout (the elementwise gates)
  and stored in float32 scratch. The chunks of slabs start `chunk + 1` rows apart;
* a strided load with that stride then returns one time step of all slabs. The stride is odd, so it
  is a single load without bank conflicts; with an even stride the compiler splits it into two to
  four loads.

The grid is (batch, width, time). Time is sequential and carries the state in scratch. Batch and
width are parallel, so v4 and v5p split them over their two cores.

T can be any number. The last block extends past the end of the arrays, where reads return undefined
values and writes are dropped. In the forward direction these values cannot reach an earlier step.
In the backward direction, the chunk that contains the end is masked, outside the inner loop.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import manual_axes, platform

LANES = 128  # channels in a vector register
SUBLANES = 8  # its other axis: time steps in HBM's layout, slabs in the recurrence
CHUNK = 32  # steps per transposed chunk; 16 and 64 cost within 10% of it, 64 with twice the code
MAX_SLABS = 32  # four registers of state
# Before v6e, compilers allow a kernel 16 MB of VMEM by default; the difference is for spills.
VMEM_BYTES = 14 << 20
# Added to log a at a reset: exp underflows to exactly 0. Finite, so that 0 * log a is not NaN.
RESET_LOG = -1e4


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The block of [B, T, R] that one grid step computes."""

  batch: int  # rows; divides B
  time: int  # steps; a multiple of 128, since the reset mask is stored in rows of 128 lanes
  groups: int  # groups of 128 channels; divides R / 128
  chunk: int = CHUNK  # steps per transposed chunk; a multiple of 8, divides `time`

  @property
  def slabs(self) -> int:
    """Number of slabs."""
    return self.batch * self.groups

  @property
  def stride(self) -> int:
    """Rows of scratch from the start of one slab to that of the next; odd."""
    return self.chunk + 1

  def each_slab(self):
    """Yields (index of the slab, batch row, slice of the block's channels)."""
    for slab in range(self.slabs):
      row, group = divmod(slab, self.groups)
      yield slab, row, slice(group * LANES, (group + 1) * LANES)

  def registers(self):
    """Lists the slabs in groups of eight, which share a vector register of states."""
    slabs = list(self.each_slab())
    return [slabs[i : i + SUBLANES] for i in range(0, len(slabs), SUBLANES)]


def refusal(x: jax.Array, *_: Any) -> str | None:
  """Returns why these kernels cannot run on x [B, T, R]; None if they can."""
  if x.shape[1] == 1 or x.shape[2] % LANES == 0:
    return None  # a single step is plain XLA
  return f"needs a width (per shard) that is a multiple of {LANES}, got {x.shape[2]}"


def check_width(name: str, x: jax.Array) -> None:
  """Raises ValueError unless the kernel of operation `name` supports the width of x [B, T, R]."""
  if reason := refusal(x):
    raise ValueError(f"{name}: the Pallas TPU kernel {reason}. Change the width or its sharding.")


class BlockPlan(NamedTuple):
  """The blocks of both directions; their `time` is equal: a state is saved for each time block."""

  forward: Blocks
  backward: Blocks


def plan(
  shape: tuple[int, int, int], itemsize: int, *, forward_arrays: int, backward_arrays: int
) -> BlockPlan:
  """Picks the blocks for arrays of shape [B, T, R], R a multiple of 128.

  Args:
    shape: (B, T, R).
    itemsize: bytes per element of these arrays.
    forward_arrays: number of these arrays that the forward kernel reads and writes.
    backward_arrays: the same for the backward kernel.
  """
  backward = choose_blocks(shape, itemsize, backward_arrays)
  return BlockPlan(choose_blocks(shape, itemsize, forward_arrays, backward.time), backward)


def choose_blocks(
  shape: tuple[int, int, int], itemsize: int, arrays: int, time: int | None = None
) -> Blocks:
  """Picks the block for one kernel; `time` fixes its length in steps.

  Four registers of state (32 slabs) hide the latency of the multiply-add chain. If the number of
  slabs is no multiple of 8, a register is partly empty. If the number of blocks is odd, one of two
  cores is idle for one block.
  """
  batch, steps, width = shape
  all_groups = width // LANES

  def cost(rows, groups):
    slabs = rows * groups
    registers = -(-slabs // SUBLANES)
    # Bundles per 1024 elements: about 8 for the gates, with any blocks. A step of the chain takes
    # one bundle per register, but at least its latency of 4.
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
    # Small blocks get more steps, so that a grid step moves at least half a megabyte per array.
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
  return 2 * arrays * window + scratch + mask  # 2: the next window arrives during computation


def scratch_rows(blocks: Blocks) -> pl.MemoryRef:
  """Returns float32 scratch for a chunk of all slabs, which start `stride` rows apart."""
  rows = -(-blocks.slabs * blocks.stride // SUBLANES) * SUBLANES
  return pltpu.VMEM((rows, LANES), jnp.float32)


def slab_rows(blocks: Blocks, slab: int) -> slice | pl.Slice:
  """Returns the rows of scratch with one slab's chunk."""
  return pl.ds(slab * blocks.stride, blocks.chunk)


def step_rows(blocks: Blocks, step: int, register: int | None = None) -> slice | pl.Slice:
  """Returns the rows of scratch with one time step of a register's slabs, or of all slabs."""
  first = 0 if register is None else register * SUBLANES
  count = blocks.slabs if register is None else min(SUBLANES, blocks.slabs - first)
  return pl.ds(first * blocks.stride + step, count, stride=blocks.stride)


def split_state(state: jax.Array) -> tuple[jax.Array, ...]:
  """Splits [slabs, 128] into one array per register; the last may have fewer rows."""
  return tuple(state[i : i + SUBLANES] for i in range(0, state.shape[0], SUBLANES))


def stagger(blocks: Blocks, prepare, recur, finish) -> None:
  """Interleaves the stages of a chunk, so that independent instructions are next to each other.

  Each step of the recurrence waits for its own multiplication and addition. The computations before
  and after the recurrence wait for nothing. So during the recurrence of one register's slabs, the
  slabs of the next register are prepared, and those of the previous register are finished. If the
  stages are emitted one after the other, the compiler does not interleave them. This costs 16.9
  instead of 15.4 bundles per 1024 elements forward on v4, and 8.5 instead of 7.7 on v5e.

  Args:
    blocks: the block of one grid step.
    prepare: function `(slab, row, lanes)`: the first stage of a slab.
    recur: function `(register, steps)`: the recurrence of a register's slabs over a range of steps.
    finish: function `(slab, row, lanes)`: the last stage of a slab.
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
  """Reads [batch, 1, groups * 128] as [slabs, 128], one row per slab."""
  return jnp.concatenate([ref[row, :, lanes] for _, row, lanes in blocks.each_slab()], axis=0)


def write_state(ref, state: jax.Array, blocks: Blocks) -> None:
  """Writes [slabs, 128] as [batch, 1, groups * 128]; the inverse of `read_state`."""
  for slab, row, lanes in blocks.each_slab():
    ref[row, :, lanes] = state[slab : slab + 1]


def reset_log(reset: jax.Array, blocks: Blocks) -> jax.Array:
  """Converts resets [B, T] bool to terms [B, T'/128, 1, 128] float32 of log a.

  T' is T rounded up to whole blocks.
  """
  steps = reset.shape[1]
  padded = pl.cdiv(steps, blocks.time) * blocks.time
  mask = jnp.pad(jnp.where(reset, RESET_LOG, 0.0), ((0, 0), (0, padded - steps)))
  return mask.astype(jnp.float32).reshape(reset.shape[0], -1, 1, LANES)


def expand_reset(mask_ref, rows_ref, blocks: Blocks) -> None:
  """Transposes the mask from lanes to rows [batch, time, 128], as the gates need it."""
  for row in range(blocks.batch):
    for part in range(blocks.time // LANES):
      square = jnp.broadcast_to(mask_ref[row, part], (LANES, LANES))
      rows_ref[row, part * LANES : (part + 1) * LANES, :] = square.T


@dataclasses.dataclass(frozen=True)
class Specs:
  """The block spec of each kind of array, on the grid (batch, width, time)."""

  tile: pl.BlockSpec  # [B, T, R]
  state: pl.BlockSpec  # [B, 1, R]
  entries: pl.BlockSpec  # [B, number of time blocks, 1, R]
  channel: pl.BlockSpec  # [1, R]
  channel_sum: pl.BlockSpec  # [B, 8, R]
  mask: pl.BlockSpec  # [B, T'/128, 1, 128]


def block_specs(blocks: Blocks, time_blocks: int, *, backward: bool) -> Specs:
  """Returns the specs of a kernel that visits the time blocks forward or backward."""
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
  """Calls `pl.pallas_call` with the options that all recurrence kernels share.

  Args:
    kernel: the kernel body; its arguments are the pytrees of inputs, outputs and scratch.
    name: name in profiles and dumps.
    grid: (batch blocks, width blocks, time blocks).
    inputs: pytree of (array, BlockSpec); None for an absent input.
    outputs: pytree of (shape, dtype, BlockSpec).
    scratch: pytree of memory spaces; None for absent ones.
    flops, transcendentals: operations per call; without them, XLA's scheduler takes the call as
      free.
    like: array with the manual mesh axes of the outputs.
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

  False if the kind is not known: the formulas for older chips are right on all chips.
  """
  kind = platform.device_kind().lower()
  if platform.target() != "tpu" or not kind:
    return False
  return not any(old in kind for old in ("v2", "v3", "v4", "v5"))
