"""Blocks of the delta rule's TPU kernels: what one step of the grid reads and writes.

The grid is (rows, groups of heads, blocks of time). Blocks of time run one after the other and
carry the states in VMEM; rows and groups are parallel, so v4 and v5p split them over their two
cores. T can be any number: beyond the end of the last block, reads return anything, and writes are
dropped.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import NamedTuple

from jax.experimental import pallas as pl

from kernels.delta_rule import chunk_of

LANES = 128
# Bytes of a key and a value from which a chunk of 64 spills more registers than VMEM can hold.
WIDE = 2048
# Tokens of a chunk: bfloat16 tiles have 16 rows; beyond 128, the triangular matrix costs too much.
SHORTEST, LONGEST = 16, 128
# Compilers allow a kernel 16 MB of VMEM by default before v6e; the difference is for what is not
# counted.
VMEM_BYTES = 15 << 20
# Of which a head's spilled registers take so many per 128 channels of the keys: with decays per
# head, and with those per channel by the bytes of an element of q.
SPILLS_BY_HEAD, SPILLS_BY_CHANNEL = 512 << 10, {2: 896 << 10, 4: 1280 << 10}


@dataclasses.dataclass(frozen=True)
class Plan:
  """Sizes of a problem and of its blocks.

  Attributes:
    heads: H.
    key_dim, value_dim: K and V.
    length: T.
    chunk: tokens of a chunk.
    chunks: chunks of a block of time.
    group: heads of a block; divides H.
    by_channel: whether decays are per channel of the keys.
  """

  heads: int
  key_dim: int
  value_dim: int
  length: int
  chunk: int
  chunks: int
  group: int
  by_channel: bool

  @property
  def time(self) -> int:
    """Tokens of a block."""
    return self.chunks * self.chunk

  @property
  def blocks(self) -> int:
    """Blocks of time of a row."""
    return -(-self.length // self.time)

  @property
  def is_ragged(self) -> bool:
    """Whether the last block extends past the row's end, where reads return anything."""
    return self.length % self.time != 0

  @property
  def scalars(self) -> int:
    """Numbers per token and head: beta, and parts of a running sum or whether a segment starts."""
    return 2 if self.by_channel else 3


def choose_plan(
  heads: int,
  key_dim: int,
  value_dim: int,
  length: int,
  itemsize: int,
  *,
  chunk: int,
  by_channel: bool,
) -> Plan | None:
  """Picks the blocks; None where VMEM has no room for a chunk and a state of a single head.

  Up to four heads run side by side where it has.

  Args:
    heads, key_dim, value_dim, length: H, K, V and T.
    itemsize: bytes per element of q.
    chunk: as in `kernels.delta_rule.delta_rule`.
    by_channel: whether decays are per channel of the keys.
  """
  chunk = min(max(chunk_of(chunk, length), SHORTEST), LONGEST)
  if (key_dim + value_dim) * itemsize > WIDE:
    chunk = min(chunk, 32)
  needed = -(-length // chunk)
  groups = [group for group in (4, 2, 3, 1) if heads % group == 0]
  # A block of one chunk would save a state for each.
  for least, group, chunks in itertools.product((4, 2, 1), groups, (8, 4, 2, 1)):
    if chunks < least or chunks * chunk > 512:
      continue
    plan = Plan(heads, key_dim, value_dim, length, chunk, min(chunks, needed), group, by_channel)
    if vmem_bytes(plan, itemsize) <= VMEM_BYTES:
      return plan
  return None


def vmem_bytes(plan: Plan, itemsize: int) -> int:
  """VMEM of the backward kernel, the larger one."""

  def lanes(channels):
    return -(-channels // LANES) * LANES

  keys, values = (plan.group * lanes(x) for x in (plan.key_dim, plan.value_dim))
  windows = plan.time * (4 * keys + 3 * values) * itemsize
  windows += plan.time * 2 * keys * 4 if plan.by_channel else 0
  state = plan.value_dim * lanes(plan.key_dim) * 4 * plan.group
  kept = plan.time * (2 * lanes(plan.chunk) + 2 * lanes(plan.value_dim)) * 4 * plan.group
  inverses = plan.time * lanes(plan.group * plan.chunk) * itemsize
  spills = SPILLS_BY_CHANNEL[itemsize] if plan.by_channel else SPILLS_BY_HEAD
  kept += keys // LANES * spills
  return 2 * (windows + inverses + 3 * state) + (plan.chunks + 2) * state + kept


class Specs(NamedTuple):
  """The block spec of each kind of array, on the grid (rows, groups of heads, blocks of time)."""

  keys: pl.BlockSpec  # [B, H, T, K]
  values: pl.BlockSpec  # [B, H, T, V]
  scalars: pl.BlockSpec  # [B, H, blocks, rows, C]
  state: pl.BlockSpec  # [B, H, V, K]
  entries: pl.BlockSpec  # [B, blocks, H, V, K]
  inverses: pl.BlockSpec  # [B, H / group, T', group x C]


def block_specs(plan: Plan, *, backward: bool) -> Specs:
  def when(s):
    return plan.blocks - 1 - s if backward else s

  def tile(channels):
    return pl.BlockSpec((1, plan.group, plan.time, channels), lambda b, g, s: (b, g, when(s), 0))

  state = plan.group, plan.value_dim, plan.key_dim
  rows = plan.chunks * plan.scalars, plan.chunk
  squares = plan.time, plan.group * plan.chunk
  return Specs(
    keys=tile(plan.key_dim),
    values=tile(plan.value_dim),
    scalars=pl.BlockSpec((1, plan.group, 1, *rows), lambda b, g, s: (b, g, when(s), 0, 0)),
    state=pl.BlockSpec((1, *state), lambda b, g, s: (b, g, 0, 0)),
    entries=pl.BlockSpec((1, 1, *state), lambda b, g, s: (b, when(s), g, 0, 0)),
    inverses=pl.BlockSpec((1, 1, *squares), lambda b, g, s: (b, g, when(s), 0)),
  )
