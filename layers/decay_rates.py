"""Initial values of the rates of decays that have steps, as Mamba's code sets them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def log_rate(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
  """Returns log A for A uniform in [1, 16], as in Mamba-2's code."""
  return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


def step_bias(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
  """Returns the bias whose softplus is log-uniform in [0.001, 0.1], as in Mamba's code."""
  step = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(1e-1)))
  return step + jnp.log(-jnp.expm1(-step))
