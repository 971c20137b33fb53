"""Reference recurrence as one `lax.scan`, differentiated by JAX: slow, simple enough to trust."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gated_linear_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_a: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
  last: bool,
  chunk: int,
) -> tuple[jax.Array, jax.Array | None]:
  """See `kernels.gated_linear_attention.gated_linear_attention`."""
  del chunk
  wide, (batch, _, heads, values) = log_a.dtype, v.shape
  a = jnp.exp(log_a.reshape(*log_a.shape[:3], -1))  # [B, T, H, 1 or K]
  if reset is not None:
    a = jnp.where(reset[..., None, None], 0, a)
  shared = heads // q.shape[2]

  def step(h, inputs):
    a_t, q_t, k_t, v_t = inputs
    q_t, k_t = (jnp.repeat(x, shared, axis=1).astype(wide) for x in (q_t, k_t))
    h = a_t[..., None] * h + k_t[..., None] * v_t[..., None, :].astype(wide)
    y = jnp.einsum("bhk,bhkv->bhv", q_t, h, precision=jax.lax.Precision.HIGHEST)
    return h, y.astype(q.dtype)

  inputs = [jnp.swapaxes(x, 0, 1) for x in (a, q, k, v)]
  if h0 is None:
    h0 = jnp.zeros((batch, heads, q.shape[3], values))
  h_last, y = jax.lax.scan(step, h0.astype(wide), inputs)
  return jnp.swapaxes(y, 0, 1), h_last if last else None
