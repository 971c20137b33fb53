"""Causal attention with shared key/value heads, optionally within a window and within segments."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.platform import Implementation, resolve

IMPLEMENTATIONS = {
  "splash": Implementation("kernels.attention.splash", ("tpu",), ("tpu",)),
  "mosaic_gpu": Implementation(
    "kernels.attention.mosaic_gpu", ("gpu",), ("gpu",), dtypes=("bfloat16",)
  ),
  "xla_blockwise": Implementation("kernels.attention.xla_blockwise", default_on=("cpu", "gpu")),
  "cudnn": Implementation("kernels.attention.cudnn", ("gpu",)),
  "reference": Implementation("kernels.attention.reference"),
}


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  q_segment_ids: jax.Array | None = None,
  kv_segment_ids: jax.Array | None = None,
  window: int | None = None,
  scale: float | None = None,
  implementation: str | None = None,
) -> jax.Array:
  """Attends from each query to the keys at or before it.

  The T queries are at the last T of the S key positions: query t is at key position t + S - T. It
  sees a key that is not later, fewer than `window` positions earlier, and in the same segment.

  Args:
    q: [B, T, H, K] queries, float32 or bfloat16.
    k, v: [B, S, G, K] keys and values, S >= T; head h reads key/value head h // (H / G).
    q_segment_ids: [B, T] int32, or None.
    kv_segment_ids: [B, S] int32; None exactly if q_segment_ids is None.
    window: number of positions that a query sees, including its own; None for all.
    scale: factor on the scores; K^-0.5 if None.
    implementation: a name from IMPLEMENTATIONS; None takes the platform's best for these types and
      shapes.

  Returns:
    [B, T, H, K] in q's dtype; zeros for a query that sees nothing. The softmax is float32.

  Raises:
    ValueError: shapes or types disagree, or the implementation cannot run this here.
  """
  _check(q, k, v, q_segment_ids, kv_segment_ids, window)
  run = resolve("attention", implementation, IMPLEMENTATIONS, (q, k, v))
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  return run(q, k, v, q_segment_ids, kv_segment_ids, window, scale)


def _check(q, k, v, q_segment_ids, kv_segment_ids, window) -> None:
  op = "attention"
  if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
    raise ValueError(
      f"{op}: q must be [B, T, H, K] and k, v [B, S, G, K], got {q.shape}, {k.shape}, {v.shape}."
    )
  if q.dtype not in (jnp.float32, jnp.bfloat16, jnp.float64):
    raise ValueError(f"{op}: q must be float32 or bfloat16, got {q.dtype}.")
  batch, length, heads, head_dim = q.shape
  if k.shape[0] != batch or k.shape[3] != head_dim or k.shape[1] < length:
    raise ValueError(
      f"{op}: k of shape {k.shape} does not fit q of shape {q.shape}: batch and head size must "
      "agree, and there must be at least as many keys as queries."
    )
  if heads % k.shape[2]:
    raise ValueError(f"{op}: {heads} query heads cannot share {k.shape[2]} key/value heads evenly.")
  if (q_segment_ids is None) != (kv_segment_ids is None):
    raise ValueError(f"{op}: pass both q_segment_ids and kv_segment_ids, or neither.")
  if q_segment_ids is not None and (
    q_segment_ids.shape != q.shape[:2] or kv_segment_ids.shape != k.shape[:2]
  ):
    raise ValueError(
      f"{op}: segment ids have shapes {q_segment_ids.shape} and {kv_segment_ids.shape}; "
      f"{q.shape[:2]} and {k.shape[:2]} are needed."
    )
  if window is not None and window < 1:
    raise ValueError(f"{op}: window is {window}; it must be at least 1 (the query itself).")
