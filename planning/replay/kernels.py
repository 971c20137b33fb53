"""The time of Pallas kernels, which XLA's estimates leave out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from kernels.attention import splash
from planning.hardware.chip import Hardware, Pace
from planning.hlo import text

_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)")
_RECURRENCE = re.compile(r"(rg_lru|linear_scan)_(forward|backward)")
# Recurrences: bundles of the innermost loop per 1024 elements of the state's sequence, forward and
# backward: `python -m benchmarks.tpu_bundles`.
RECURRENCE_BUNDLES = {
  "v3": {"rg_lru": (30.56, 65.8), "linear_scan": (17.11, 30.87)},
  "v4": {"rg_lru": (15.37, 28.3), "linear_scan": (4.97, 8.01)},
  "v5e": {"rg_lru": (7.71, 13.86), "linear_scan": (4.26, 6.38)},
  "v5p": {"rg_lru": (8.04, 13.98), "linear_scan": (4.27, 6.38)},
  "v6e": {"rg_lru": (7.2, 11.5), "linear_scan": (3.07, 4.3)},
  "tpu7x": {"rg_lru": (7.13, 11.61), "linear_scan": (3.04, 4.23)},
}
# Splash attention: VLIW bundles of one visited block of 512 queries and 512 keys, for heads of 128
# and of 256 channels, then the same with a window, which costs more masking. A core issues one
# bundle per cycle. From the compiler's listing: `python -m benchmarks.attention_bundles`.
_BLOCK = 512
SPLASH_BUNDLES = {
  "v3": {
    "fwd": (2628, 4269, 2949, 4504),
    "dq": (2802, 5375, 3327, 5444),
    "dkv": (3163, 6290, 3488, 6510),
  },
  "v4": {
    "fwd": (1818, 3262, 2113, 3603),
    "dq": (2072, 3544, 2450, 3868),
    "dkv": (2653, 4337, 2901, 4562),
  },
  "v5e": {
    "fwd": (1182, 2240, 1138, 2300),
    "dq": (1512, 2923, 1839, 3072),
    "dkv": (1918, 3907, 2074, 3903),
  },
  "v5p": {
    "fwd": (1178, 2175, 1198, 2238),
    "dq": (1504, 2948, 1763, 2943),
    "dkv": (1911, 3823, 2131, 3905),
  },
  "v6e": {
    "fwd": (994, 1063, 1355, 1417),
    "dq": (1173, 1211, 1562, 1588),
    "dkv": (1456, 1496, 1682, 1744),
  },
  "tpu7x": {
    "fwd": (980, 1522, 1341, 1897),
    "dq": (1126, 1199, 1510, 1393),
    "dkv": (1301, 1386, 1394, 1485),
  },
}
# The delta rule in chunks of 64: bundles per 1024 elements of q, forward and backward, with a decay
# per head and per channel, for heads of 128 channels: `python -m benchmarks.tpu_bundles`.
DELTA_RULE_BUNDLES = {
  "v4": {"head": (117.22, 101.62), "channel": (174.97, 309.53)},
  "v5e": {"head": (93.88, 70.03), "channel": (119.09, 166.25)},
  "v5p": {"head": (94.09, 70.06), "channel": (119.06, 165.09)},
  "v6e": {"head": (75.84, 66.62), "channel": (98.75, 135.0)},
  "tpu7x": {"head": (67.31, 63.03), "channel": (95.31, 131.75)},
}
_DELTA_RULE = re.compile(r"delta_rule_(head|channel)_(forward|backward)")
# Bundles of a step of the grid, visited or not: what the compiler's static profile of the forward
# kernel on v6e adds from 4 to 16 steps of the grid.
_STEP = 175


def decided_by_bytes(call: text.Operation, hardware: Hardware) -> bool:
  """Whether a kernel's HBM traffic takes longer than its instructions: recurrences on GPUs."""
  return hardware.platform == "gpu" and _RECURRENCE.search(call.name) is not None


def seconds(
  call: text.Operation, operations: dict[str, text.Operation], hardware: Hardware
) -> float | None:
  """Estimates the time of a kernel from its instructions; None for kernels without a rule.

  The HBM traffic of a kernel is counted apart: the longer of both is its time.

  Args:
    call: the custom call.
    operations: the operations of its computation.
    hardware: what it runs on.
  """
  found, pace = _SPLASH.search(call.name), hardware.pace
  arrays = [
    array
    for name in call.operands
    if name in operations
    for array in text.arrays(operations[name].result)
  ]
  if recurrence := _RECURRENCE.search(call.name):
    # The largest arrays are sequences, [B, T, D].
    elements = max(math.prod(shape) for _, shape in arrays)
    return _listed_seconds(RECURRENCE_BUNDLES, recurrence[1], recurrence[2], elements, pace)
  if delta := _DELTA_RULE.search(call.name):
    # The first array is q, [B, H, T, K]. A chunk's work grows with the channels, but for the
    # triangular matrix of each head.
    (_, (rows, heads, length, channels)), *_ = arrays
    elements = rows * heads * length * max(channels, 128)
    return _listed_seconds(DELTA_RULE_BUNDLES, delta[1], delta[2], elements, pace)
  if not found or pace.clock is None or pace.generation not in SPLASH_BUNDLES:
    return None
  attention = attention_of(arrays, found[1])
  if attention is None or (attention.dtype == "f32") != (pace.generation == "v3"):
    return None
  listed = SPLASH_BUNDLES[pace.generation][found[1]]
  narrow, wide = listed[2:] if attention.has_window else listed[:2]
  bundles = max(narrow / 2, narrow + (wide - narrow) * (attention.channels - 128) / 128)
  per_head = attention.visited * bundles * attention.block + attention.steps * _STEP
  # Forward, the cores of a device share rows and heads; backward, JAX's kernels share rows alone.
  shared = attention.rows * (attention.heads if found[1] == "fwd" else 1)
  share = math.ceil(shared / pace.cores) / shared
  return attention.rows * attention.heads * per_head * share / pace.clock


def _listed_seconds(
  listed: Mapping[str, Mapping[str, tuple[float, float]]],
  kernel: str,
  direction: str,
  elements: int,
  pace: Pace,
) -> float | None:
  """The time of a kernel's instructions, from a table of bundles per 1024 elements."""
  if pace.clock is None or pace.generation not in listed:
    return None
  bundles = listed[pace.generation][kernel][direction == "backward"]
  return elements / 1024 * bundles / pace.cores / pace.clock


class Attention(NamedTuple):
  """What a call of splash attention works on.

  Attributes:
    dtype: of the queries.
    rows, heads, channels: sizes of the queries [B, H, T, K].
    visited, steps: per head, blocks that are visited, and steps of the grid.
    block: size of a block, in blocks of 512 x 512.
    has_window: whether the mask is a window, not all of the past.
  """

  dtype: str
  rows: int
  heads: int
  channels: int
  visited: int
  steps: int
  block: float
  has_window: bool


def attention_of(arrays: list[text.Array], kernel: str) -> Attention | None:
  """Reads the operands of a call: tables of blocks [1 or H, i, j], then q, k, v.

  q is [B, H, T, K], or [H, T, K] of one row: JAX drops an axis of one that a kernel is mapped over.
  """
  table = next((shape for dtype, shape in arrays if dtype[0] == "s" and len(shape) == 3), None)
  real = [
    (dtype, shape)
    for dtype, shape in arrays
    if dtype[0] != "s" and len(shape) >= 2 and shape[-2] % splash.LANES == 0
  ]
  if table is None or len(real) < 2 or len(real[0][1]) < 3:
    return None
  (dtype, queries), (_, keys) = real[:2]
  *batch, length, channels = queries
  size, key_size = splash.block(length), splash.block(keys[-2])
  count, key_count = length // size, keys[-2] // key_size
  # Blocks of keys up to the last token that a block of queries may see.
  offset = keys[-2] - length
  seen = [min(key_count, -(-(offset + (i + 1) * size) // key_size)) for i in range(count)]
  if kernel == "dkv":  # a row of the table is a block of keys
    seen = [sum(n > j for n in seen) for j in range(key_count)]
    width, whole = table[1], count
  else:
    width, whole = table[2], key_count
  return Attention(
    dtype=dtype,
    rows=math.prod(batch[:-1]),
    heads=batch[-1],
    channels=channels,
    visited=sum(min(n, width) for n in seen),
    steps=table[1] * table[2],
    block=size * key_size / _BLOCK**2,
    has_window=width < whole,
  )
