"""Reference recurrence as one `lax.scan`, differentiated by JAX: slow, simple enough to trust."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def delta_rule(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  beta: jax.Array,
  log_a: jax.Array | None,
  h0: jax.Array | None,
  reset: jax.Array | None,
  last: bool,
  chunk: int,
) -> tuple[jax.Array, jax.Array | None]:
  """See `kernels.delta_rule.delta_rule`."""
  del chunk
  wide, (batch, length, heads, channels) = beta.dtype, q.shape
  a = jnp.ones((batch, length, heads, 1), wide)
  if log_a is not None:
    a = jnp.exp(log_a.reshape(batch, length, heads, -1))
  if reset is not None:
    a = jnp.where(reset[..., None, None], 0, a)

  def product(subscripts, *operands):
    return jnp.einsum(subscripts, *operands, precision=jax.lax.Precision.HIGHEST)

  def step(h, inputs):
    a_t, q_t, *corrections = inputs
    h = a_t[..., None] * h
    for k_j, v_j, beta_j in zip(*corrections, strict=True):
      k_j = k_j.astype(wide)
      u = beta_j[..., None] * (v_j.astype(wide) - product("bhk,bhkv->bhv", k_j, h))
      h = h + k_j[..., None] * u[..., None, :]
    return h, product("bhk,bhkv->bhv", q_t.astype(wide), h).astype(q.dtype)

  # Time first; of the corrections, [T, J, B, H, ...].
  inputs = [jnp.moveaxis(x, 1, 0) for x in (a, q)]
  for x in (k, v, beta):
    x = jnp.moveaxis(x, 1, 0)
    inputs.append(x.reshape(length, -1, *x.shape[1:]))
  if h0 is None:
    h0 = jnp.zeros((batch, heads, channels, v.shape[3]))
  h_last, y = jax.lax.scan(step, h0.astype(wide), tuple(inputs))
  return jnp.moveaxis(y, 0, 1), h_last if last else None
