"""Flash attention on Hopper GPUs, forward, as a Mosaic GPU kernel.

A block of the grid has 128 queries of one head: two warpgroups of 64 rows. It goes through the
blocks of keys that they see (FlashAttention, Dao et al. 2022, arXiv 2205.14135; with warpgroups for
copies and for products, Shah et al. 2024, arXiv 2407.08608). Scores stay in registers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import manual_axes
from kernels.attention_gpu import launch, ranges, warpgroups
from kernels.attention_gpu.warpgroups import F32, LOG2E, ROWS, along, product, spread

SLOTS = 2
WARPGROUPS = 2
Q_BLOCK = WARPGROUPS * ROWS


def kv_block(head_dim: int) -> int:
  """Keys of a block: those for which two blocks and the queries fit into shared memory."""
  return 64 if head_dim > 128 else 128


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_ids: jax.Array,
  kv_ids: jax.Array,
  *,
  window: int | None,
  offset: int,
  scale: float,
  interpret=None,
) -> tuple[jax.Array, jax.Array]:
  """Attends from each query to the keys that it sees.

  Args:
    q: [B, T, H, K] bfloat16, T a multiple of 128.
    k, v: [B, S, G, K] bfloat16, S a multiple of 128.
    q_ids: [B, T] int32.
    kv_ids: [B, S] int32.
    window: tokens that a query sees, itself included; None for all.
    offset: position of the first query among the keys.
    scale: factor on the scores.
    interpret: parameters of Pallas' GPU interpreter, or None.

  Returns:
    [B, T, H, K] bfloat16, and the logarithms to base 2 of the softmax sums [B, H, T] float32.
  """
  batch, length, heads, head_dim = q.shape
  columns = kv_block(head_dim)
  seen = ranges.pairs(
    q_ids, kv_ids, q_block=Q_BLOCK, kv_block=columns, window=window, offset=offset
  )
  emulated = interpret is not None
  group = heads // k.shape[2]

  def body(q_g, k_g, v_g, q_ids_g, kv_ids_g, spans_g, out_g, sums_g, *scratch):
    q_s, k_s, v_s, q_ids_s, kv_ids_s, sums_s, q_ready, k_ready, v_ready, k_read, v_read = scratch
    row, head, tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
    warpgroup = lax.axis_index("warpgroup")
    span = warpgroups.load_span(spans_g, row, tile)
    first, end = span[0], span[3]

    @pl.when(warpgroup < WARPGROUPS)
    def _compute():
      plgpu.set_max_registers(warpgroups.COMPUTE_REGISTERS, action="increase")
      start = tile * Q_BLOCK + warpgroup * ROWS
      mine = pl.ds(start, ROWS)
      ready = q_ready.at[warpgroup]
      plgpu.copy_gmem_to_smem(q_g.at[row, mine, head], q_s.at[warpgroup], ready)
      plgpu.copy_gmem_to_smem(q_ids_g.at[row, mine], q_ids_s.at[warpgroup], ready)
      plgpu.barrier_wait(ready)
      ids = along(q_ids_s.at[warpgroup], 0)

      def visit(block, carry, *, masked):
        mixed, most, total = carry
        slot = lax.rem(block - first, jnp.asarray(SLOTS, block.dtype))
        plgpu.barrier_wait(k_ready.at[slot])
        scores = product(q_s.at[warpgroup], k_s.at[slot].T, emulated=emulated) * (scale * LOG2E)
        if masked:
          kv = along(kv_ids_s.at[slot], 1)
          sees = warpgroups.visible(
            start + offset, block * columns, ids, kv, scores.shape, q_axis=0, window=window
          )
          scores = jnp.where(sees, scores, warpgroups.HIDDEN)
        plgpu.barrier_arrive(k_read.at[slot])
        largest = jnp.maximum(most, scores.max(axis=1))
        shrink = jnp.exp2(most - largest)
        weights = jnp.exp2(scores - spread(largest, scores.shape, 0))
        total = total * shrink + weights.sum(axis=1)
        mixed = mixed * spread(shrink, mixed.shape, 0)
        plgpu.barrier_wait(v_ready.at[slot])
        mixed = warpgroups.add_product(
          mixed, weights.astype(jnp.bfloat16), v_s.at[slot], emulated=emulated
        )
        plgpu.barrier_arrive(v_read.at[slot])
        return mixed, largest, total

      of_rows = plgpu.Layout.WGMMA.reduce(1)
      most = plgpu.layout_cast(jnp.full((ROWS,), warpgroups.LEAST, F32), of_rows)
      total = plgpu.layout_cast(jnp.zeros((ROWS,), F32), of_rows)
      carry = (warpgroups.zeros(ROWS, head_dim), most, total)
      mixed, most, total = warpgroups.in_three_parts(span, visit, carry)

      none = total == 0
      divisor = jnp.where(none, 1.0, total)
      q_s.at[warpgroup][...] = (mixed / spread(divisor, mixed.shape, 0)).astype(jnp.bfloat16)
      sums_s.at[warpgroup][...] = jnp.where(
        none, warpgroups.NOTHING, most + jnp.log(divisor) * LOG2E
      )
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(q_s.at[warpgroup], out_g.at[row, mine, head])
      plgpu.copy_smem_to_gmem(sums_s.at[warpgroup], sums_g.at[row, head, mine])
      plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == WARPGROUPS)
    def _fetch():
      plgpu.set_max_registers(warpgroups.COPY_REGISTERS, action="decrease")
      kv_head = lax.div(head, jnp.asarray(group, head.dtype))

      def copy(step, slot):
        keys = pl.ds((first + step) * columns, columns)
        plgpu.copy_gmem_to_smem(k_g.at[row, keys, kv_head], k_s.at[slot], k_ready.at[slot])
        plgpu.copy_gmem_to_smem(kv_ids_g.at[row, keys], kv_ids_s.at[slot], k_ready.at[slot])
        plgpu.copy_gmem_to_smem(v_g.at[row, keys, kv_head], v_s.at[slot], v_ready.at[slot])

      warpgroups.fetch(end - first, SLOTS, (k_read, v_read), copy)

  return launch.call(
    body,
    (q, k, v, q_ids, kv_ids, ranges.spans(seen)),
    (
      manual_axes.output(q.shape, q.dtype, q),
      manual_axes.output((batch, heads, length), F32, q),
    ),
    grid={"head": heads, "tile": length // Q_BLOCK, "batch": batch},
    warpgroups=WARPGROUPS,
    scratch=(
      warpgroups.shared(WARPGROUPS, ROWS, head_dim),
      warpgroups.shared(SLOTS, columns, head_dim),
      warpgroups.shared(SLOTS, columns, head_dim),
      plgpu.SMEM((WARPGROUPS, ROWS), jnp.int32),
      plgpu.SMEM((SLOTS, columns), jnp.int32),
      plgpu.SMEM((WARPGROUPS, ROWS), F32),
      plgpu.Barrier(num_arrivals=2, num_barriers=WARPGROUPS),
      plgpu.Barrier(num_arrivals=2, num_barriers=SLOTS),
      plgpu.Barrier(num_barriers=SLOTS),
      plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=SLOTS),
      plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=SLOTS),
    ),
    pairs=launch.visible_pairs(q, k, window),
    products=2,
    interpret=interpret,
  )
