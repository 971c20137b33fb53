"""The delta rule: a matrix-valued state that corrects what it holds under a key.

Sources: DeltaNet (Yang et al. 2024, arXiv 2406.06484) without decay, Gated DeltaNet (Yang et al.
2024, arXiv 2412.06464) with a decay per head, Kimi Delta Attention (Kimi Team 2025, arXiv
2510.26692) with a decay per channel of the keys, DeltaProduct (Siems et al. 2025, arXiv 2502.10297)
with several corrections per token.
"""

from __future__ import annotations

import math
from typing import cast

import jax
import jax.numpy as jnp

from kernels.platform import PLATFORMS, Implementation, resolve

IMPLEMENTATIONS = {
  "pallas_tpu": Implementation("kernels.delta_rule.pallas_tpu", ("tpu",), ("tpu",)),
  "chunked": Implementation("kernels.delta_rule.chunked", default_on=PLATFORMS),
  "reference": Implementation("kernels.delta_rule.reference"),
}


def delta_rule(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  beta: jax.Array,
  log_a: jax.Array | None = None,
  h0: jax.Array | None = None,
  *,
  reset: jax.Array | None = None,
  last: bool = True,
  chunk: int = 64,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Solves `h_t = (I - beta_t k_t k_t^T) diag(a_t) h_{t-1} + beta_t k_t v_t^T`, per head.

  The result is `y_t = h_t^T q_t`. The papers write the transpose of this state. With J corrections
  per token, a token decays the state once, corrects it J times, and is read after the last.

  The state stays bounded if each key has a norm of at most 1 and beta is in [0, 2]. From 1 on, a
  correction has a negative eigenvalue, `1 - beta |k|^2` (Grazzi et al. 2024, arXiv 2411.12537).

  Args:
    q: [B, T, H, K] queries, float32 or bfloat16.
    k: [B, J T, H, K] keys in q's dtype; the J keys of a token are consecutive.
    v: [B, J T, H, V] values in q's dtype.
    beta: [B, J T, H] float32 >= 0, strengths of the corrections.
    log_a: float32 <= 0 and finite, logarithms of the decays: [B, T, H], or [B, T, H, K] with one
      per channel of the keys; None decays nothing.
    h0: [B, H, K, V] float32 state before the first step; zeros if None.
    reset: [B, T] bool, True where a segment starts: the state before that step is zero.
    last: whether to return the last state.
    chunk: number of tokens that the chunked form multiplies as one matrix, a power of two.
    implementation: a name from IMPLEMENTATIONS; None takes the platform's default.

  Returns:
    y: [B, T, H, V] in q's dtype, and the state after the last step: [B, H, K, V] float32; None
    without `last`. Decays, states and sums are float32.

  Raises:
    ValueError: shapes or types disagree.
  """
  _check(q, k, v, beta, log_a, h0, reset, chunk)
  run = resolve("delta_rule", implementation, IMPLEMENTATIONS)
  return run(q, k, v, beta, log_a, h0, reset, last, chunk)


def state_map(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  beta: jax.Array,
  log_a: jax.Array | None = None,
  *,
  reset: jax.Array | None = None,
  chunk: int = 64,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Finds M and N of the map from the state before a row to the state after it, `h -> M h + N`.

  The recurrence acts on each column of a state alone. So M is what becomes of the identity, which
  joins the state as further columns, with values of zero.

  Args:
    q, k, v, beta, log_a, reset, chunk, implementation: as in `delta_rule`.

  Returns:
    M: [B, H, K, K] float32, and N: [B, H, K, V] float32.
  """
  batch, _, heads, channels = q.shape
  identity = jnp.eye(channels, channels + v.shape[-1], dtype=beta.dtype)
  _, last = delta_rule(
    jnp.zeros_like(q),
    k,
    jnp.concatenate([jnp.zeros_like(k), v], axis=-1),
    beta,
    log_a,
    jnp.broadcast_to(identity, (batch, heads, *identity.shape)),
    reset=reset,
    chunk=chunk,
    implementation=implementation,
  )
  last = cast(jax.Array, last)
  return last[..., :channels], last[..., channels:]


def matmul_flops(
  *,
  heads: int,
  key_dim: int,
  value_dim: int,
  chunk: int,
  length: int,
  corrections: int = 1,
  decay_per_channel: bool = False,
) -> float:
  """Returns floating-point operations of the chunked form's products per token of a row, forward.

  Args:
    heads, key_dim, value_dim: H, K and V.
    chunk: as in `delta_rule`.
    length: tokens of the row.
    corrections: J.
    decay_per_channel: whether decays are per channel of the keys. The scores are then those of each
      token with itself, and of each half with the half before.
  """
  chunk = chunk_of(chunk, length)
  rows = corrections * chunk
  scores = (chunk + rows) * rows * key_dim
  if decay_per_channel:
    scores = scores * (chunk + 1) // (2 * chunk)
  states = (chunk + 2 * rows) * key_dim * value_dim
  solved = (chunk + rows) * rows * value_dim
  products = 2 * (scores + states + solved) + inverse_flops(rows)
  return heads * products * -(-length // chunk) / length


def inverse_flops(rows: int) -> float:
  """Operations of the products that invert a triangular matrix of so many rows."""
  size, flops = inverse_base(rows), 0
  while size < rows:
    flops += (rows // (2 * size)) * 2 * 2 * size**3
    size *= 2
  return flops


def inverse_base(rows: int) -> int:
  """Rows of the diagonal blocks that are inverted without products of matrices."""
  while rows > 16 and rows % 2 == 0:
    rows //= 2
  return rows


def chunk_of(chunk: int, length: int) -> int:
  """Tokens of a chunk of a row: a power of two, and no more than the row needs."""
  return min(chunk, 2 ** math.ceil(math.log2(length)))


def _check(q, k, v, beta, log_a, h0, reset, chunk) -> None:
  if q.ndim != 4 or 0 in q.shape:
    raise ValueError(f"delta_rule: q must be [B, T, H, K] and not empty, got shape {q.shape}.")
  if q.dtype not in (jnp.float32, jnp.bfloat16, jnp.float64):
    raise ValueError(f"delta_rule: q must be float32 or bfloat16, got {q.dtype}.")
  batch, length, heads, channels = q.shape
  if k.ndim != 4 or (k.shape[0], *k.shape[2:]) != (batch, heads, channels):
    raise ValueError(
      f"delta_rule: k must be [{batch}, J T, {heads}, {channels}] as q is, got shape {k.shape}."
    )
  if k.shape[1] == 0 or k.shape[1] % length:
    raise ValueError(
      f"delta_rule: k has {k.shape[1]} steps and q has {length}; every token needs as many keys as "
      "the others."
    )
  if v.ndim != 4 or v.shape[:3] != k.shape[:3] or 0 in v.shape:
    raise ValueError(f"delta_rule: v must be {k.shape[:3]} x V as k is, got shape {v.shape}.")
  if k.dtype != q.dtype or v.dtype != q.dtype:
    raise ValueError(f"delta_rule: k and v must be {q.dtype} as q is, got {k.dtype} and {v.dtype}.")
  wide = (jnp.float32, jnp.float64)
  if beta.shape != k.shape[:3] or beta.dtype not in wide:
    raise ValueError(
      f"delta_rule: beta must be float32 {k.shape[:3]}, got {beta.dtype} {beta.shape}."
    )
  if log_a is not None and (log_a.shape not in (q.shape[:3], q.shape) or log_a.dtype not in wide):
    raise ValueError(
      f"delta_rule: log_a must be float32 {q.shape[:3]} or {q.shape}, got {log_a.dtype} "
      f"{log_a.shape}."
    )
  state = (batch, heads, channels, v.shape[3])
  if h0 is not None and h0.shape != state:
    raise ValueError(f"delta_rule: h0 has shape {h0.shape}; k and v need {state}.")
  if reset is not None and (reset.shape != q.shape[:2] or reset.dtype != jnp.bool_):
    raise ValueError(
      f"delta_rule: reset must be bool {q.shape[:2]}, got {reset.dtype} {reset.shape}."
    )
  if chunk < 1 or chunk & (chunk - 1):
    raise ValueError(f"delta_rule: chunk={chunk} must be a power of two.")
