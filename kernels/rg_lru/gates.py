"""The gates of the RG-LRU, shared by the implementations in plain XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp

MAX_SQRT_GRADIENT = 1000.0  # RecurrentGemma's bound: the derivative is infinite at a = 1.


def gated(
  x: jax.Array, gate_a: jax.Array, gate_x: jax.Array, log_decay: jax.Array, reset: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """The decay and the scaled input of each step.

  Args:
    x, gate_a, gate_x: [B, T, R]; log_decay: [R]; reset: [B, T] bool or None.

  Returns:
    a and `sqrt(1 - a^2) sigmoid(gate_x) x`: [B, T, R], float32 or wider.
  """
  wide = log_decay.dtype
  less_one = jnp.expm1(jax.nn.sigmoid(gate_a.astype(wide)) * log_decay)
  a, scale = 1 + less_one, bounded_sqrt(one_minus_square(less_one))
  if reset is not None:
    reset = reset[..., None]
    a, scale = jnp.where(reset, 0, a), jnp.where(reset, 1, scale)
  return a, scale * jax.nn.sigmoid(gate_x.astype(wide)) * x.astype(wide)


def one_minus_square(less_one: jax.Array) -> jax.Array:
  """1 - a^2 from a - 1, with all its digits when a is near 1."""
  return -less_one * (2 + less_one)


@jax.custom_vjp
def bounded_sqrt(v: jax.Array) -> jax.Array:
  """Square root whose derivative is at most MAX_SQRT_GRADIENT."""
  return jnp.sqrt(v)


def bounded_sqrt_gradient(v: jax.Array) -> jax.Array:
  """`min(1 / (2 sqrt(v)), MAX_SQRT_GRADIENT)`."""
  return jax.lax.rsqrt(jnp.maximum(4 * v, MAX_SQRT_GRADIENT**-2))


bounded_sqrt.defvjp(lambda v: (jnp.sqrt(v), v), lambda v, g: (g * bounded_sqrt_gradient(v),))
