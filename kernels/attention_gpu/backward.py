"""The gradients of flash attention on Hopper GPUs, as two Mosaic GPU kernels.

One kernel goes through the keys that a block of queries sees, and sums dq. The other goes through
the queries that see a block of keys, of all heads that read them, and sums dk and dv: no sums of
single heads reach memory. Both compute the weights again from the logarithms of the softmax sums.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import manual_axes
from kernels.attention_gpu import launch, ranges, warpgroups
from kernels.attention_gpu.warpgroups import F32, LOG2E, ROWS, add_product, along, product, spread

SLOTS = 2
STREAMED = 64  # keys (for dq) or queries (for dk and dv) of a block that is gone through
PART = 128  # channels of a sum of dk or dv: two of 256 channels would not fit into registers


class Inputs(NamedTuple):
  """What both kernels read.

  Attributes:
    q: [B, T, H, K] bfloat16, T a multiple of 128.
    k, v: [B, S, G, K] bfloat16, S a multiple of 128.
    q_ids: [B, T] int32.
    kv_ids: [B, S] int32.
    g: [B, T, H, K] bfloat16, cotangent of the output.
    sums: [B, H, T] float32, logarithms to base 2 of the softmax sums.
    dots: [B, H, T] float32, the output times its cotangent, summed over channels.
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  q_ids: jax.Array
  kv_ids: jax.Array
  g: jax.Array
  sums: jax.Array
  dots: jax.Array


def of_queries(
  inputs: Inputs, *, window: int | None, offset: int, scale: float, interpret=None
) -> jax.Array:
  """Returns dq [B, T, H, K] bfloat16; see `kernels.attention_gpu.forward.attention`."""
  q, k = inputs.q, inputs.k
  batch, length, heads, head_dim = q.shape
  computing = 1 if head_dim > 128 else 2  # two would leave shared memory for one block of keys
  rows = computing * ROWS
  seen = ranges.pairs(
    inputs.q_ids, inputs.kv_ids, q_block=rows, kv_block=STREAMED, window=window, offset=offset
  )
  emulated = interpret is not None
  group = heads // k.shape[2]
  shape = (ROWS, STREAMED)

  def body(q_g, k_g, v_g, q_ids_g, kv_ids_g, g_g, sums_g, dots_g, spans_g, dq_g, *scratch):
    q_s, g_s, k_s, v_s, q_ids_s, kv_ids_s, sums_s, dots_s, q_ready, kv_ready, kv_read = scratch
    row, head, tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
    warpgroup = lax.axis_index("warpgroup")
    span = warpgroups.load_span(spans_g, row, tile)
    first, end = span[0], span[3]

    @pl.when(warpgroup < computing)
    def _compute():
      plgpu.set_max_registers(warpgroups.COMPUTE_REGISTERS, action="increase")
      start = tile * rows + warpgroup * ROWS
      mine = pl.ds(start, ROWS)
      for source, target in (
        (q_g.at[row, mine, head], q_s),
        (g_g.at[row, mine, head], g_s),
        (q_ids_g.at[row, mine], q_ids_s),
        (sums_g.at[row, head, mine], sums_s),
        (dots_g.at[row, head, mine], dots_s),
      ):
        plgpu.copy_gmem_to_smem(source, target.at[warpgroup], q_ready.at[warpgroup])
      plgpu.barrier_wait(q_ready.at[warpgroup])
      ids, sums, dots = (along(x.at[warpgroup], 0) for x in (q_ids_s, sums_s, dots_s))

      def visit(block, dq, *, masked):
        slot = lax.rem(block - first, jnp.asarray(SLOTS, block.dtype))
        plgpu.barrier_wait(kv_ready.at[slot])
        scores = product(q_s.at[warpgroup], k_s.at[slot].T, emulated=emulated) * (scale * LOG2E)
        if masked:
          kv = along(kv_ids_s.at[slot], 1)
          sees = warpgroups.visible(
            start + offset, block * STREAMED, ids, kv, shape, q_axis=0, window=window
          )
          scores = jnp.where(sees, scores, warpgroups.HIDDEN)
        weights = jnp.exp2(scores - spread(sums, shape, 0))
        dweights = product(g_s.at[warpgroup], v_s.at[slot].T, emulated=emulated)
        dscores = weights * (dweights - spread(dots, shape, 0)) * scale
        dq = add_product(dq, dscores.astype(jnp.bfloat16), k_s.at[slot], emulated=emulated)
        plgpu.barrier_arrive(kv_read.at[slot])
        return dq

      dq = warpgroups.in_three_parts(span, visit, warpgroups.zeros(ROWS, head_dim))
      q_s.at[warpgroup][...] = dq.astype(jnp.bfloat16)
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(q_s.at[warpgroup], dq_g.at[row, mine, head])
      plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == computing)
    def _fetch():
      plgpu.set_max_registers(warpgroups.COPY_REGISTERS, action="decrease")
      kv_head = lax.div(head, jnp.asarray(group, head.dtype))

      def copy(step, slot):
        keys = pl.ds((first + step) * STREAMED, STREAMED)
        ready = kv_ready.at[slot]
        plgpu.copy_gmem_to_smem(k_g.at[row, keys, kv_head], k_s.at[slot], ready)
        plgpu.copy_gmem_to_smem(v_g.at[row, keys, kv_head], v_s.at[slot], ready)
        plgpu.copy_gmem_to_smem(kv_ids_g.at[row, keys], kv_ids_s.at[slot], ready)

      warpgroups.fetch(end - first, SLOTS, (kv_read,), copy)

  (dq,) = launch.call(
    body,
    (*inputs, ranges.spans(seen)),
    (manual_axes.output(q.shape, q.dtype, q),),
    grid={"head": heads, "tile": length // rows, "batch": batch},
    warpgroups=computing,
    scratch=(
      warpgroups.shared(computing, ROWS, head_dim),
      warpgroups.shared(computing, ROWS, head_dim),
      warpgroups.shared(SLOTS, STREAMED, head_dim),
      warpgroups.shared(SLOTS, STREAMED, head_dim),
      plgpu.SMEM((computing, ROWS), jnp.int32),
      plgpu.SMEM((SLOTS, STREAMED), jnp.int32),
      plgpu.SMEM((computing, ROWS), F32),
      plgpu.SMEM((computing, ROWS), F32),
      plgpu.Barrier(num_arrivals=5, num_barriers=computing),
      plgpu.Barrier(num_arrivals=3, num_barriers=SLOTS),
      plgpu.Barrier(num_arrivals=computing, num_barriers=SLOTS),
    ),
    pairs=launch.visible_pairs(q, k, window),
    products=3,
    interpret=interpret,
  )
  return dq


def of_keys(
  inputs: Inputs, *, window: int | None, offset: int, scale: float, interpret=None
) -> tuple[jax.Array, jax.Array]:
  """Returns dk and dv [B, S, G, K] bfloat16; see `kernels.attention_gpu.forward.attention`.

  With up to 128 channels, each of two warpgroups has 64 keys of its own. With 256, both have the
  same keys, and each sums half of the channels.
  """
  q, k = inputs.q, inputs.k
  batch, _, heads, head_dim = q.shape
  kv_heads = k.shape[2]
  parts = -(-head_dim // PART)
  width = head_dim // parts
  computing = 2
  sets = computing // parts  # of 64 keys in a block of the grid
  columns = sets * ROWS
  seen = ranges.pairs(
    inputs.q_ids, inputs.kv_ids, q_block=STREAMED, kv_block=columns, window=window, offset=offset
  )
  emulated = interpret is not None
  group = heads // kv_heads
  shape = (ROWS, STREAMED)

  def body(q_g, k_g, v_g, q_ids_g, kv_ids_g, g_g, sums_g, dots_g, spans_g, dk_g, dv_g, *scratch):
    k_s, v_s, q_s, g_s, kv_ids_s, q_ids_s, sums_s, dots_s, *barriers = scratch
    kv_ready, q_ready, q_read, finished = barriers
    row, kv_head, tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
    warpgroup = lax.axis_index("warpgroup")
    span = warpgroups.load_span(spans_g, row, tile)
    first, end = span[0], span[3]
    count = end - first

    def channels(part):
      return pl.ds(part * width, width)

    @pl.when(warpgroup < computing)
    def _compute():
      plgpu.set_max_registers(warpgroups.COMPUTE_REGISTERS, action="increase")
      # Which set of keys, and which of its channels this warpgroup sums. Not Python's numbers:
      # Mosaic takes no constant index of a reference inside a sum of products.
      own = lax.div(warpgroup, jnp.asarray(parts, warpgroup.dtype))
      part = lax.rem(warpgroup, jnp.asarray(parts, warpgroup.dtype))
      start = tile * columns + own * ROWS
      mine = pl.ds(start, ROWS)

      # With one set of keys, the first warpgroup fetches it for both.
      @pl.when(warpgroup < sets)
      def _():
        ready = kv_ready.at[own]
        for i in range(parts):
          plgpu.copy_gmem_to_smem(
            k_g.at[row, mine, kv_head, channels(i)], k_s.at[own * parts + i], ready
          )
          plgpu.copy_gmem_to_smem(
            v_g.at[row, mine, kv_head, channels(i)], v_s.at[own * parts + i], ready
          )
        plgpu.copy_gmem_to_smem(kv_ids_g.at[row, mine], kv_ids_s.at[own], ready)

      plgpu.barrier_wait(kv_ready.at[own])
      ids = along(kv_ids_s.at[own], 0)

      def of_pairs(a_s, b_s, slot):
        """[keys, queries]: products over all channels."""
        total = warpgroups.zeros(*shape)
        for i in range(parts):
          a, b = a_s.at[own * parts + i], b_s.at[slot * parts + i]
          total = add_product(total, a, b.T, emulated=emulated)
        return total

      def of_head(member, carry):
        def visit(block, carry, *, masked):
          dk, dv = carry
          step = member * count + block - first
          slot = lax.rem(step, jnp.asarray(SLOTS, step.dtype))
          plgpu.barrier_wait(q_ready.at[slot])
          scores = of_pairs(k_s, q_s, slot) * (scale * LOG2E)
          if masked:
            q_ids = along(q_ids_s.at[slot], 1)
            sees = warpgroups.visible(
              block * STREAMED + offset, start, q_ids, ids, shape, q_axis=1, window=window
            )
            scores = jnp.where(sees, scores, warpgroups.HIDDEN)
          weights = jnp.exp2(scores - spread(along(sums_s.at[slot], 1), shape, 1))
          dv = add_product(
            dv, weights.astype(jnp.bfloat16), g_s.at[slot * parts + part], emulated=emulated
          )
          dweights = of_pairs(v_s, g_s, slot)
          dots = spread(along(dots_s.at[slot], 1), shape, 1)
          dscores = weights * (dweights - dots) * scale
          dk = add_product(
            dk, dscores.astype(jnp.bfloat16), q_s.at[slot * parts + part], emulated=emulated
          )
          plgpu.barrier_arrive(q_read.at[slot])
          return dk, dv

        return warpgroups.in_three_parts(span, visit, carry)

      nothing = warpgroups.zeros(ROWS, width)
      dk, dv = lax.fori_loop(0, group, of_head, (nothing, nothing))
      if parts > 1:  # the results take the place of keys that the other warpgroup still reads
        plgpu.barrier_arrive(finished)
        plgpu.barrier_wait(finished)
      k_s.at[own * parts + part][...] = dk.astype(jnp.bfloat16)
      v_s.at[own * parts + part][...] = dv.astype(jnp.bfloat16)
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(
        k_s.at[own * parts + part], dk_g.at[row, mine, kv_head, channels(part)]
      )
      plgpu.copy_smem_to_gmem(
        v_s.at[own * parts + part], dv_g.at[row, mine, kv_head, channels(part)]
      )
      plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == computing)
    def _fetch():
      plgpu.set_max_registers(warpgroups.COPY_REGISTERS, action="decrease")

      def copy(step, slot):
        queries = pl.ds((first + lax.rem(step, count)) * STREAMED, STREAMED)
        head = kv_head * group + lax.div(step, count)
        ready = q_ready.at[slot]
        for i in range(parts):
          plgpu.copy_gmem_to_smem(
            q_g.at[row, queries, head, channels(i)], q_s.at[slot * parts + i], ready
          )
          plgpu.copy_gmem_to_smem(
            g_g.at[row, queries, head, channels(i)], g_s.at[slot * parts + i], ready
          )
        plgpu.copy_gmem_to_smem(q_ids_g.at[row, queries], q_ids_s.at[slot], ready)
        plgpu.copy_gmem_to_smem(sums_g.at[row, head, queries], sums_s.at[slot], ready)
        plgpu.copy_gmem_to_smem(dots_g.at[row, head, queries], dots_s.at[slot], ready)

      warpgroups.fetch(group * count, SLOTS, (q_read,), copy)

  return launch.call(
    body,
    (*inputs, ranges.spans(ranges.swapped(seen))),
    (manual_axes.output(k.shape, k.dtype, q), manual_axes.output(k.shape, k.dtype, q)),
    grid={"head": kv_heads, "tile": k.shape[1] // columns, "batch": batch},
    warpgroups=computing,
    scratch=(
      warpgroups.shared(sets * parts, ROWS, width),
      warpgroups.shared(sets * parts, ROWS, width),
      warpgroups.shared(SLOTS * parts, STREAMED, width),
      warpgroups.shared(SLOTS * parts, STREAMED, width),
      plgpu.SMEM((sets, ROWS), jnp.int32),
      plgpu.SMEM((SLOTS, STREAMED), jnp.int32),
      plgpu.SMEM((SLOTS, STREAMED), F32),
      plgpu.SMEM((SLOTS, STREAMED), F32),
      plgpu.Barrier(num_arrivals=2 * parts + 1, num_barriers=sets),
      plgpu.Barrier(num_arrivals=2 * parts + 3, num_barriers=SLOTS),
      plgpu.Barrier(num_arrivals=computing, num_barriers=SLOTS),
      plgpu.Barrier(num_arrivals=computing),
    ),
    pairs=launch.visible_pairs(q, k, window),
    products=2 + 2 * parts,  # scores and their gradients once per part of the channels
    interpret=interpret,
  )
