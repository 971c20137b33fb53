"""State-space duality: a linear recurrence of matrix-valued states with one decay per head.

Source: Dao and Gu 2024, "Transformers are SSMs" (Mamba-2).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.platform import PLATFORMS, Implementation, resolve

IMPLEMENTATIONS = {
  "chunked": Implementation("kernels.ssd.chunked", default_on=PLATFORMS),
  "reference": Implementation("kernels.ssd.reference"),
}


def ssd(
  x: jax.Array,
  log_a: jax.Array,
  b: jax.Array,
  c: jax.Array,
  h0: jax.Array | None = None,
  *,
  reset: jax.Array | None = None,
  last: bool = True,
  chunk: int = 128,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Solves `h_t = exp(log_a_t) h_{t-1} + b_t x_t^T` and computes `y_t = h_t^T c_t`, per head.

  Args:
    x: [B, T, H, P] inputs, float32 or bfloat16.
    log_a: [B, T, H] float32 <= 0, logarithms of the decays.
    b: [B, T, G, N] in x's dtype, writes to the state. A group has H / G consecutive heads.
    c: [B, T, G, N] in x's dtype, reads from the state.
    h0: [B, H, N, P] float32 state before the first step; zeros if None.
    reset: [B, T] bool, True where a segment starts: the state before that step is zero.
    last: whether to return the last state; a training step does not need it.
    chunk: number of steps that the chunked form multiplies as one matrix.
    implementation: a name from IMPLEMENTATIONS; None takes the platform's default.

  Returns:
    y: [B, T, H, P] in x's dtype, and the state after the last step: [B, H, N, P] float32; None
    without `last`. Decays, states and sums are float32.

  Raises:
    ValueError: shapes or types disagree.
  """
  _check(x, log_a, b, c, h0, reset, chunk)
  run = resolve("ssd", implementation, IMPLEMENTATIONS)
  return run(x, log_a, b, c, h0, reset, last, chunk)


def matmul_flops(
  *, heads: int, head_dim: int, groups: int, state_size: int, chunk: int, length: int
) -> float:
  """Returns floating-point operations of the chunked form's products per token of a row, forward.

  It is for a row without initial and last state: the first chunk reads no state, and the last chunk
  writes none.
  """
  chunk = min(chunk, length)
  chunks = -(-length // chunk)
  within = 2 * chunk * (groups * state_size + heads * head_dim)
  state = 2 * heads * head_dim * state_size
  return (chunks * within + (chunks - 1) * 2 * state) * chunk / length


def _check(x, log_a, b, c, h0, reset, chunk) -> None:
  if x.ndim != 4 or 0 in x.shape:
    raise ValueError(f"ssd: x must be [B, T, H, P] and not empty, got shape {x.shape}.")
  if x.dtype not in (jnp.float32, jnp.bfloat16, jnp.float64):
    raise ValueError(f"ssd: x must be float32 or bfloat16, got {x.dtype}.")
  batch, length, heads, head_dim = x.shape
  if log_a.shape != x.shape[:3] or log_a.dtype not in (jnp.float32, jnp.float64):
    raise ValueError(f"ssd: log_a must be float32 {x.shape[:3]}, got {log_a.dtype} {log_a.shape}.")
  if b.shape != c.shape or b.ndim != 4 or b.shape[:2] != (batch, length):
    raise ValueError(
      f"ssd: b and c must both be [{batch}, {length}, G, N], got {b.shape} and {c.shape}."
    )
  if heads % b.shape[2]:
    raise ValueError(
      f"ssd: {b.shape[2]} groups of b and c do not divide {heads} heads; choose a number that does."
    )
  state = (batch, heads, b.shape[3], head_dim)
  if h0 is not None and h0.shape != state:
    raise ValueError(f"ssd: h0 has shape {h0.shape}; x and b need {state}.")
  if reset is not None and (reset.shape != x.shape[:2] or reset.dtype != jnp.bool_):
    raise ValueError(f"ssd: reset must be bool {x.shape[:2]}, got {reset.dtype} {reset.shape}.")
  if chunk < 1:
    raise ValueError(f"ssd: chunk={chunk} must be at least 1.")
