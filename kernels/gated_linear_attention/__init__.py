"""Gated linear attention: a linear recurrence of matrix-valued states with decays.

Sources: RetNet (Sun et al. 2023, arXiv 2307.08621) and state-space duality (Dao and Gu 2024, arXiv
2405.21060, Mamba-2) with a decay per head, Gated Linear Attention (Yang et al. 2023, arXiv
2312.06635) and HGRN2 (Qin et al. 2024, arXiv 2404.07904) with a decay per channel of the keys.
`mlstm` adds the gates and the normalizer of mLSTM.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from kernels.platform import PLATFORMS, Implementation, resolve

IMPLEMENTATIONS = {
  "chunked": Implementation("kernels.gated_linear_attention.chunked", default_on=PLATFORMS),
  "reference": Implementation("kernels.gated_linear_attention.reference"),
}


def gated_linear_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_a: jax.Array,
  h0: jax.Array | None = None,
  *,
  reset: jax.Array | None = None,
  last: bool = True,
  chunk: int = 64,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Solves `h_t = diag(a_t) h_{t-1} + k_t v_t^T` and computes `y_t = h_t^T q_t`, per head.

  A scale of the scores is the caller's, as a factor of q.

  Args:
    q: [B, T, G, K] queries, float32 or bfloat16. A group has H / G consecutive heads.
    k: [B, T, G, K] keys in q's dtype.
    v: [B, T, H, V] values in q's dtype.
    log_a: float32 <= 0 (but for roundings), logarithms of the decays: [B, T, H], or [B, T, H, K]
      with one per channel of the keys, where G is H.
    h0: [B, H, K, V] float32 state before the first step; zeros if None.
    reset: [B, T] bool, True where a segment starts: the state before that step is zero.
    last: whether to return the last state; a training step does not need it.
    chunk: number of steps that the chunked form multiplies as one matrix; a power of two where
      decays are per channel.
    implementation: a name from IMPLEMENTATIONS; None takes the platform's default.

  Returns:
    y: [B, T, H, V] in q's dtype, and the state after the last step: [B, H, K, V] float32; None
    without `last`. Decays, states and sums are float32.

  Raises:
    ValueError: shapes or types disagree.
  """
  _check(q, k, v, log_a, h0, reset, chunk)
  run = resolve("gated_linear_attention", implementation, IMPLEMENTATIONS)
  return run(q, k, v, log_a, h0, reset, last, chunk)


def log_of_product(q: jax.Array, k: jax.Array, v: jax.Array, log_a: jax.Array) -> jax.Array:
  """The logarithm of the product of all decays, [B, H, 1 or K, 1]: what a row does to a state.

  The arguments are those of `gated_linear_attention`, for `parallel.sequence.recur`.
  """
  del q, k, v
  total = jnp.sum(log_a, axis=1)
  return total.reshape(*total.shape[:2], -1, 1)


def matmul_flops(
  *,
  heads: int,
  key_dim: int,
  value_dim: int,
  chunk: int,
  length: int,
  groups: int | None = None,
  decay_per_channel: bool = False,
) -> float:
  """Returns floating-point operations of the chunked form's products per token of a row, forward.

  It is for a row without initial and last state. With decays per head, the first chunk then reads
  no state, and the last chunk writes none.

  Args:
    heads, key_dim, value_dim: H, K and V.
    chunk: as in `gated_linear_attention`.
    length: tokens of the row.
    groups: G; None is H.
    decay_per_channel: whether decays are per channel of the keys. The scores are then those of each
      half of a chunk with the half before, of each quarter, and so on.
  """
  state = 2 * heads * key_dim * value_dim
  if decay_per_channel:
    chunk = chunk_of(chunk, length)
    scores = heads * (chunk - 1) * key_dim
    products = scores + 2 * chunk * heads * value_dim + 2 * state
    return products * chunk * -(-length // chunk) / length
  chunk = min(chunk, length)
  chunks = -(-length // chunk)
  within = 2 * chunk * ((groups or heads) * key_dim + heads * value_dim)
  return (chunks * within + (chunks - 1) * 2 * state) * chunk / length


def chunk_of(chunk: int, length: int) -> int:
  """Tokens of a chunk with decays per channel: a power of two, no more than the row needs."""
  return min(chunk, 2 ** math.ceil(math.log2(length)))


def _check(q, k, v, log_a, h0, reset, chunk) -> None:
  name, wide = "gated_linear_attention", (jnp.float32, jnp.float64)
  if q.ndim != 4 or 0 in q.shape:
    raise ValueError(f"{name}: q must be [B, T, G, K] and not empty, got shape {q.shape}.")
  if q.dtype not in (jnp.bfloat16, *wide):
    raise ValueError(f"{name}: q must be float32 or bfloat16, got {q.dtype}.")
  if k.shape != q.shape:
    raise ValueError(f"{name}: k must be {q.shape} as q is, got shape {k.shape}.")
  if v.ndim != 4 or v.shape[:2] != q.shape[:2] or 0 in v.shape:
    raise ValueError(f"{name}: v must be {q.shape[:2]} x [H, V] as q is, got shape {v.shape}.")
  if k.dtype != q.dtype or v.dtype != q.dtype:
    raise ValueError(f"{name}: k and v must be {q.dtype} as q is, got {k.dtype} and {v.dtype}.")
  groups, channels = q.shape[2:]
  heads = v.shape[2]
  if heads % groups:
    raise ValueError(
      f"{name}: {groups} groups of q and k do not divide {heads} heads; choose a number that does."
    )
  shapes = v.shape[:3], (*v.shape[:3], channels)
  if log_a.shape not in shapes or log_a.dtype not in wide:
    raise ValueError(
      f"{name}: log_a must be float32 {shapes[0]} or {shapes[1]}, got {log_a.dtype} {log_a.shape}."
    )
  if log_a.ndim == 4 and groups != heads:
    raise ValueError(
      f"{name}: decays per channel need q and k of all {heads} heads, got {groups} groups."
    )
  state = (q.shape[0], heads, channels, v.shape[3])
  if h0 is not None and h0.shape != state:
    raise ValueError(f"{name}: h0 has shape {h0.shape}; k and v need {state}.")
  if reset is not None and (reset.shape != q.shape[:2] or reset.dtype != jnp.bool_):
    raise ValueError(f"{name}: reset must be bool {q.shape[:2]}, got {reset.dtype} {reset.shape}.")
  if chunk < 1:
    raise ValueError(f"{name}: chunk={chunk} must be at least 1.")
  if log_a.ndim == 4 and chunk & (chunk - 1):
    raise ValueError(f"{name}: chunk={chunk} must be a power of two for decays per channel.")
