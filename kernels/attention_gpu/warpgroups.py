"""What the attention kernels share: products, masks, and the warpgroup that fetches blocks.

A block of the grid has one or two warpgroups that compute, 64 rows each, and one that only starts
copies to shared memory (TMA), a few blocks ahead. Barriers say when a slot is filled and when it
has been read.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

F32 = jnp.float32
ROWS = 64  # of a warpgroup's product
LOG2E = math.log2(math.e)
HIDDEN = -1e30  # the score of a key that a query does not see, in units of log 2
LEAST = -1e20  # the running maximum before any key: finite, and far above HIDDEN
NOTHING = 1e30  # the logarithm of the sum of a query that sees nothing: all its weights are 0
COMPUTE_REGISTERS, COPY_REGISTERS = 232, 40


def shared(*shape: int) -> Any:
  """Bfloat16 matrices in shared memory, tiled and swizzled as the matrix units read them."""
  transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
  return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)


def product(a: Any, b: Any, *, emulated: bool) -> jax.Array:
  """a @ b as [ROWS, n] float32; b is a shared matrix, a too or in registers."""
  if emulated:
    return _multiplied(a, b)

  def compute(sum_ref):
    plgpu.wgmma(sum_ref, a, b)
    return sum_ref[...]

  made: Any = pl.run_scoped(compute, plgpu.WGMMAAccumulatorRef((a.shape[0], b.shape[1]), F32))
  return made


def add_product(total: jax.Array, a: Any, b: Any, *, emulated: bool) -> jax.Array:
  """total + a @ b; see `product`."""
  if emulated:
    return total + _multiplied(a, b)
  accumulate: Any = pl.run_state(lambda sum_ref: plgpu.wgmma(sum_ref, a, b))
  return accumulate(plgpu.WGMMAAccumulatorRef.init(total))


def _multiplied(a, b):
  """The product where Pallas interprets the kernel: it has no matrix units with registers."""
  a, b = (x if isinstance(x, jax.Array) else _read(x) for x in (a, b))
  return lax.dot(a, b, preferred_element_type=F32)


def _read(ref):
  """Reads a matrix, which may be a transposed view."""
  for i, transform in enumerate(ref.transforms):
    if hasattr(transform, "permutation"):
      before = type(ref)(ref.ref, ref.transforms[:i])
      return before[...].T
  return ref[...]


def zeros(rows: int, columns: int) -> jax.Array:
  """A sum of products before the first."""
  return plgpu.layout_cast(jnp.zeros((rows, columns), F32), plgpu.Layout.WGMMA)


def along(ref: Any, axis: int) -> jax.Array:
  """Loads one number per row (axis 0) or column (axis 1) of a product from shared memory."""
  load: Any = plgpu.load
  index = ((),) if "idx" in inspect.signature(load).parameters else ()  # before JAX 0.11
  return load(ref, *index, layout=plgpu.Layout.WGMMA.reduce(1 - axis))


def spread(vector: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
  """Repeats one number per row (axis 0) or column (axis 1)."""
  return lax.broadcast_in_dim(vector, shape, (axis,))


def visible(
  q_from: Any, kv_from: Any, q_ids: Any, kv_ids: Any, shape, *, q_axis: int, window: int | None
) -> jax.Array:
  """True where a query sees a key.

  Args:
    q_from, kv_from: key positions of the first query and of the first key.
    q_ids, kv_ids: their segment ids, one per row or column.
    shape: of the scores.
    q_axis: the axis of the queries, 0 or 1.
    window: tokens that a query sees, itself included; None for all.
  """
  kv_axis = 1 - q_axis
  iota = [plgpu.broadcasted_iota(jnp.int32, shape, i, layout=plgpu.Layout.WGMMA) for i in (0, 1)]
  distance = (iota[q_axis] + q_from) - (iota[kv_axis] + kv_from)
  seen = (distance >= 0) & (spread(q_ids, shape, q_axis) == spread(kv_ids, shape, kv_axis))
  return seen if window is None else seen & (distance < window)


def in_three_parts(span: tuple[Any, Any, Any, Any], visit: Callable[..., Any], carry: Any) -> Any:
  """Visits the blocks of `kernels.attention_gpu.ranges.spans`: masked, not masked, masked."""
  first, plain, plain_end, end = span
  for start, stop, masked in ((first, plain, True), (plain, plain_end, False)):
    carry = lax.fori_loop(start, stop, lambda i, c, m=masked: visit(i, c, masked=m), carry)
  return lax.fori_loop(plain_end, end, lambda i, c: visit(i, c, masked=True), carry)


def fetch(count: Any, slots: int, read: tuple[Any, ...], copy: Callable[[Any, Any], None]) -> None:
  """Starts the copies of blocks 0 to count - 1, at most `slots` of them before they are read.

  Args:
    count: number of blocks.
    slots: blocks that fit into shared memory.
    read: barriers, one per slot in each, that complete when a slot has been read.
    copy: (block, slot) -> starts its copies.
  """

  @pl.loop(0, count)
  def _(step):
    slot = lax.rem(step, jnp.asarray(slots, step.dtype))

    @pl.when(step >= slots)
    def _():
      for barrier in read:
        plgpu.barrier_wait(barrier.at[slot])

    copy(step, slot)


def load_span(ref: Any, batch: Any, block: Any) -> tuple[Any, Any, Any, Any]:
  """Reads a row of `kernels.attention_gpu.ranges.spans` from global memory."""
  first, plain, plain_end, end = (ref[batch, block, i] for i in range(4))
  return first, plain, plain_end, end
