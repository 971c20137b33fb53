"""Reference recurrence as one `lax.scan`, differentiated by JAX: slow, simple enough to trust."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def ssd(
  x: jax.Array,
  log_a: jax.Array,
  b: jax.Array,
  c: jax.Array,
  h0: jax.Array | None,
  reset: jax.Array | None,
  last: bool,
  chunk: int,
) -> tuple[jax.Array, jax.Array | None]:
  """See `kernels.ssd.ssd`."""
  del chunk
  wide = log_a.dtype
  a = jnp.exp(log_a)
  if reset is not None:
    a = jnp.where(reset[..., None], 0, a)
  shared = x.shape[2] // b.shape[2]

  def step(h, inputs):
    a_t, x_t, b_t, c_t = inputs
    b_t, c_t = (jnp.repeat(v, shared, axis=1).astype(wide) for v in (b_t, c_t))
    h = a_t[..., None, None] * h + b_t[..., None] * x_t[..., None, :].astype(wide)
    return h, jnp.einsum("bhn,bhnp->bhp", c_t, h).astype(x.dtype)

  inputs = [jnp.swapaxes(v, 0, 1) for v in (a, x, b, c)]
  if h0 is None:
    h0 = jnp.zeros((x.shape[0], x.shape[2], b.shape[3], x.shape[3]))
  h_last, y = jax.lax.scan(step, h0.astype(wide), inputs)
  return jnp.swapaxes(y, 0, 1), h_last if last else None
