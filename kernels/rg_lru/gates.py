"""The gates of the RG-LRU, shared by the implementations in plain XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp

MAX_SQRT_GRADIENT = 1000.0  # RecurrentGemma's bound: the derivative is infinite at a = 1.


def gated(
  x: jax.Array, gate_a: jax.Array, gate_x: jax.Array, log_decay: jax.Array, reset: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Returns the decay and the scaled input of each step.

  Args:
    x, gate_a, gate_x: [B, T, R].
    log_decay: [R].
    reset: [B, T] bool, or None.

  Returns:
    a and `sqrt(1 - a^2) sigmoid(gate_x) x`: [B, T, R], float32 or wider.
  """
  wide = log_decay.dtype
  log_a = jax.nn.sigmoid(gate_a.astype(wide)) * log_decay
  a, scale = jnp.exp(log_a), input_scale(log_a)
  if reset is not None:
    reset = reset[..., None]
    a, scale = jnp.where(reset, 0, a), jnp.where(reset, 1, scale)
  return a, scale * jax.nn.sigmoid(gate_x.astype(wide)) * x.astype(wide)


@jax.custom_vjp
def input_scale(log_a: jax.Array) -> jax.Array:
  """Returns `sqrt(1 - a^2)`; the derivative of its square root is at most MAX_SQRT_GRADIENT."""
  return jnp.sqrt(one_minus_square(jnp.exp(log_a), log_a))


def one_minus_square(a: jax.Array, log_a: jax.Array) -> jax.Array:
  """Returns 1 - a^2 with all its digits, also if a is near 1.

  It uses tanh(-log(a) / 2) = (1 - a) / (1 + a).
  """
  return jnp.tanh(-0.5 * log_a) * ((1 + a) * (1 + a))


def input_scale_slope(a: jax.Array, square: jax.Array) -> jax.Array:
  """Returns the derivative of `input_scale` with respect to log a, from a and 1 - a^2."""
  return -2 * a * a * jax.lax.rsqrt(jnp.maximum(4 * square, MAX_SQRT_GRADIENT**-2))


def _input_scale_backward(log_a, g):
  a = jnp.exp(log_a)
  return (g * input_scale_slope(a, one_minus_square(a, log_a)),)


input_scale.defvjp(lambda log_a: (input_scale(log_a), log_a), _input_scale_backward)
