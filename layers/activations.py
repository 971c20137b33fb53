"""Activation functions by name, and gates that are made of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from base.wording import near

Function = Callable[[jax.Array], jax.Array]
Gate = Callable[[jax.Array, jax.Array], jax.Array]


def _quick_gelu(x: jax.Array) -> jax.Array:
  return x * jax.nn.sigmoid(1.702 * x)


def _clipped_gelu(x: jax.Array) -> jax.Array:
  return jnp.clip(jax.nn.gelu(x, approximate=False), -10, 10)


def _laplace(x: jax.Array) -> jax.Array:
  """The Gaussian's distribution function at MEGA's mean and width (arXiv 2209.10655)."""
  return 0.5 * (1 + jax.lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


ACTIVATIONS: dict[str, Function] = {
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "quick_gelu": _quick_gelu,
  "clipped_gelu": _clipped_gelu,
  "silu": jax.nn.silu,
  "relu": jax.nn.relu,
  "relu6": jax.nn.relu6,
  "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
  "sigmoid": jax.nn.sigmoid,
  "tanh": jnp.tanh,
  "mish": jax.nn.mish,
  "hard_swish": jax.nn.hard_swish,
  "laplace": _laplace,
  "sqrt_softplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
  "leaky_relu": jax.nn.leaky_relu,
  "linear": lambda x: x,
}


@functools.cache
def gated(name: str) -> Gate:
  """Returns `f(gate) * x`; the backward pass keeps the two inputs, not the steps of f.

  Equal names return the same function, so that models with it are equal.

  Args:
    name: a name from `ACTIVATIONS`.

  Raises:
    ValueError: there is no such activation.
  """
  if name not in ACTIVATIONS:
    raise ValueError(f"activation={name!r} is unknown{near(name, ACTIVATIONS)}")
  activation = ACTIVATIONS[name]

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def gate_by(gate: jax.Array, x: jax.Array) -> jax.Array:
    return activation(gate) * x

  return gate_by


def name_of(gate: Gate) -> str | None:
  """Returns the name of a function that `gated` made; None for another function."""
  return next((name for name in ACTIVATIONS if gated(name) is gate), None)


gelu_gated = gated("gelu_tanh")
silu_gated = gated("silu")
