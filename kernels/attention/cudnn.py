"""Attention on NVIDIA GPUs through cuDNN's flash attention, for rows of one document.

`jax.nn.dot_product_attention` passes a causal mask and a window to cuDNN, but no segment ids, and
query t is always at key t. Arguments that it would handle wrongly are refused here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels import platform

INSTEAD = "Choose the implementation 'mosaic_gpu' or 'xla_blockwise'."


def unavailable_reason() -> str | None:
  """Returns why cuDNN's attention cannot run on the GPUs of this process.

  None if it can, or if there are no GPUs.
  """
  return platform.cuda_refusal(8, "Ampere")


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

  Raises:
    ValueError: there are segment ids, there are more keys than queries, or cuDNN has no kernel for
      the types or the head size.
  """
  if q_segment_ids is not None or kv_segment_ids is not None:
    raise ValueError(
      f"attention: cudnn has no segment ids: packed documents would see each other. {INSTEAD}"
    )
  if not q.dtype == k.dtype == v.dtype == jnp.bfloat16:
    raise ValueError(
      f"attention: cudnn needs q, k and v in bfloat16, got {q.dtype}, {k.dtype} and "
      f"{v.dtype}. "
      f"{INSTEAD}"
    )
  if q.shape[1] != k.shape[1]:
    raise ValueError(
      f"attention: cudnn needs as many keys as queries, got {k.shape[1]} and {q.shape[1]}. "
      f"{INSTEAD}"
    )
  if q.shape[-1] % 8 or q.shape[-1] > 256:
    raise ValueError(
      "attention: cudnn needs heads of at most 256 channels (128 before Hopper), a multiple "
      f"of 8, got {q.shape[-1]}. {INSTEAD}"
    )
  # (tokens to the left of the query, tokens to the right)
  left_and_right = None if window is None or window >= k.shape[1] else (window - 1, 0)
  return jax.nn.dot_product_attention(
    q,
    k,
    v,
    scale=scale,
    is_causal=True,
    local_window_size=left_and_right,
    implementation="cudnn",
  )
