"""Attention on TPUs through JAX's splash attention: block-sparse flash attention in Pallas.

If no query of a block sees a block of keys, by causality or window, these keys are neither read nor
multiplied. The cost is therefore O(T * window), forward and backward.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from kernels import checkpoint_names, platform
from kernels.attention import reference

LANES = 128
MAX_BLOCK = 512  # the scores of a block of queries and keys then take 1 MB of float32 in VMEM
# The logit of a sink, which every query sees in addition to its keys. Its weight is 0 beside any
# real score. A query that sees no key then returns zeros; without the sink, the kernel would
# average all keys of its block or divide by zero.
SINK = -1e30


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_segment_ids: jax.Array | None,
  kv_segment_ids: jax.Array | None,
  window: int | None,
  scale: float,
) -> jax.Array:
  """See `kernels.attention.attention`.

  In bfloat16, q is scaled before the kernel, which rounds it once more unless the scale is a power
  of two. On TPU v2 and v3 the kernel accepts no bfloat16, so q, k and v are converted to float32.

  Raises:
    ValueError: the types are not all float32 or all bfloat16; or it is called inside
      `shard_map(check_vma=True)`, which JAX's kernel does not support.
  """
  if q.shape[1] == 1:
    # One query has no blocks to skip: XLA reads its keys once.
    return reference.attention(q, k, v, q_segment_ids, kv_segment_ids, window, scale)
  return attend(q, k, v, q_segment_ids, kv_segment_ids, window, scale)


def attend(
  q, k, v, q_segment_ids, kv_segment_ids, window, scale, *, widen=None, interpret=False
) -> jax.Array:
  """Runs the kernel for any T, with options for tests and benchmarks.

  Args:
    q, k, v, q_segment_ids, kv_segment_ids, window, scale: see `attention`.
    widen: whether to convert the kernel's operands to float32; None decides by the chip.
    interpret: run the kernel as plain XLA operations.
  """
  if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.float32, jnp.bfloat16):
    raise ValueError(
      "attention: splash needs q, k and v all in float32 or all in bfloat16, got "
      f"{q.dtype}, {k.dtype} and {v.dtype}. Cast them, or choose the implementation "
      "'xla_blockwise'."
    )
  if any(jax.typeof(x).manual_axis_type.varying for x in (q, k, v)):
    raise ValueError(
      "attention: splash attention cannot run inside shard_map(check_vma=True). Pass "
      "check_vma=False there, or choose the implementation 'xla_blockwise'."
    )
  dtype, length, heads = q.dtype, q.shape[1], q.shape[2]
  keys, kv_heads = k.shape[1:3]
  if _needs_float32() if widen is None else widen:
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
  padded, padded_keys = (-(-n // LANES) * LANES for n in (length, keys))
  offset = keys - length
  if window is not None and window >= keys:
    window = None
  kernel = _kernel(padded, padded_keys, offset, window, heads, kv_heads == 1, interpret)

  # Padding keys at the end are later than every query; the results of padding queries are dropped.
  q = _to_heads(q * jnp.asarray(scale, q.dtype), padded)
  k, v = _to_heads(k, padded_keys), _to_heads(v, padded_keys)
  if kv_heads == 1:
    k, v = k[:, 0], v[:, 0]
  ids = None
  if q_segment_ids is not None:
    ids = splash.SegmentIds(
      _pad(q_segment_ids.astype(jnp.int32), padded),
      _pad(kv_segment_ids.astype(jnp.int32), padded_keys),
    )
  sinks = jnp.full((heads,), SINK, jnp.float32)
  mixed = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, ids, sinks=sinks))(q, k, v, ids)
  return jnp.moveaxis(mixed[:, :, :length], 1, 2).astype(dtype)


@functools.lru_cache(maxsize=64)
def _kernel(length, keys, offset, window, heads, is_mqa, interpret):
  """Returns the kernel with its tables of blocks to visit: seconds of work at 32,768 tokens."""
  shape = (length, keys)
  if window is None:
    mask = splash.CausalMask(shape, offset)
  else:
    mask = splash.LocalMask(shape, (window - 1, 0), offset)
  block_q, block_kv = block(length), block(keys)
  sizes = splash.BlockSizes(
    block_q=block_q,
    block_kv=block_kv,
    block_q_dkv=block_q,
    block_kv_dkv=block_kv,
    block_q_dq=block_q,
    block_kv_dq=block_kv,
  )
  make = splash.make_splash_mqa if is_mqa else splash.make_splash_mha

  def build():
    kernel = make(
      splash.MultiHeadMask([mask] * heads),
      block_sizes=sizes,
      head_shards=1,
      q_seq_shards=1,
      residual_checkpoint_name=checkpoint_names.ATTENTION,
      interpret=interpret,
    )
    # NumPy arrays belong to no trace and no device, so they can be cached.
    return jax.tree.map(np.asarray, kernel)

  # In a separate thread, because traces belong to a thread: `jax.ensure_compile_time_eval` does not
  # leave the trace of a Flax scan.
  with ThreadPoolExecutor(1) as pool:
    return pool.submit(build).result()


def _needs_float32() -> bool:
  """Whether programs are built for a TPU before v4; False if its kind is not known."""
  kind = platform.device_kind().lower()
  return platform.target() == "tpu" and ("v2" in kind or "v3" in kind)


def block(length: int) -> int:
  """Returns the longest block that divides `length`, a multiple of 128."""
  return next(size for size in (MAX_BLOCK, 256, LANES) if length % size == 0)


def _to_heads(x, length):
  """Transposes [B, T, H, K] to [B, H, length, K], with zeros at the end."""
  return jnp.moveaxis(_pad(x, length), 2, 1)


def _pad(x, length):
  return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
