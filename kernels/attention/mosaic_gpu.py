"""Flash attention on Hopper GPUs as Mosaic kernels of our own: rows of packed documents, windows.

Blocks of keys that no query of a block sees, by causality, window or segments, are neither read
nor multiplied. Scores never reach memory, forward or backward. See `kernels.attention_gpu`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from base.custom_gradient import custom_vjp
from kernels import checkpoint_names, manual_axes, platform
from kernels.attention import reference
from kernels.attention_gpu import backward, forward, ranges

BLOCK = 128  # lengths are padded to multiples of it
HEAD_DIMS = (64, 128, 256)


def unavailable_reason() -> str | None:
  """Returns why these kernels cannot run on the GPUs of this process; None if they can."""
  # The products of a warpgroup (wgmma) are in no GPU before or after Hopper.
  return platform.cuda_refusal(9, "Hopper", most=9)


def refusal(q: jax.Array, k: jax.Array, v: jax.Array, *_: Any) -> str | None:
  """Returns why these kernels cannot run on these arrays; None if they can."""
  if q.shape[1] == 1:
    return None  # plain XLA
  if not q.dtype == k.dtype == v.dtype == jnp.bfloat16:
    return f"needs q, k and v in bfloat16, got {q.dtype}, {k.dtype} and {v.dtype}"
  if q.shape[-1] not in HEAD_DIMS:
    return f"needs heads of {', '.join(map(str, HEAD_DIMS))} channels, got {q.shape[-1]}"
  return None


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  q_segment_ids: jax.Array | None,
  kv_segment_ids: jax.Array | None,
  window: int | None,
  scale: float,
) -> jax.Array:
  """See `kernels.attention.attention`; `refusal` says what it cannot do."""
  if q.shape[1] == 1:
    # One query fills no block: XLA reads its keys once.
    return reference.attention(q, k, v, q_segment_ids, kv_segment_ids, window, scale)
  return attend(q, k, v, q_segment_ids, kv_segment_ids, window, scale)


def attend(q, k, v, q_segment_ids, kv_segment_ids, window, scale, *, interpret=None) -> jax.Array:
  """Runs the kernels for any T, or interprets them (`interpret`: for tests)."""
  length, keys = q.shape[1], k.shape[1]
  if q_segment_ids is None:
    q_segment_ids = jnp.zeros(q.shape[:2], jnp.int32)
    kv_segment_ids = jnp.zeros(k.shape[:2], jnp.int32)
  if window is not None and window >= keys:
    window = None
  q_ids = _pad(q_segment_ids.astype(jnp.int32), ranges.PADDING_QUERY)
  kv_ids = _pad(kv_segment_ids.astype(jnp.int32), ranges.PADDING_KEY)
  arrays = manual_axes.vary_together(_pad(q), _pad(k), _pad(v), q_ids, kv_ids)
  return _attend(*arrays, window, keys - length, scale, interpret)[:, :length]


@custom_vjp(nondiff_argnums=(5, 6, 7, 8))
def _attend(q, k, v, q_ids, kv_ids, window, offset, scale, interpret):
  return _attend_forward(q, k, v, q_ids, kv_ids, window, offset, scale, interpret)[0]


def _attend_forward(q, k, v, q_ids, kv_ids, window, offset, scale, interpret):
  mixed, sums = forward.attention(
    q, k, v, q_ids, kv_ids, window=window, offset=offset, scale=scale, interpret=interpret
  )
  mixed, sums = checkpoint_names.attention(mixed, sums)
  return mixed, (q, k, v, q_ids, kv_ids, mixed, sums)


def _attend_backward(window, offset, scale, interpret, residuals, g):
  q, k, v, q_ids, kv_ids, mixed, sums = residuals
  dots = jnp.sum(g.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1)
  inputs = backward.Inputs(q, k, v, q_ids, kv_ids, g, sums, jnp.swapaxes(dots, 1, 2))
  options: dict[str, Any] = {
    "window": window,
    "offset": offset,
    "scale": scale,
    "interpret": interpret,
  }
  return backward.of_queries(inputs, **options), *backward.of_keys(inputs, **options), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _pad(x, fill=0):
  """Pads [B, T, ...] at the end to whole blocks: keys there are later than every query."""
  end = -x.shape[1] % BLOCK
  return jnp.pad(x, [(0, 0), (0, end)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
