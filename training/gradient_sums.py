"""Sums of gradients that are added up in place.

The derivative of a loop over microbatches or chunks needs two sets of gradients when each pass
returns its own: that one and the sum. With JAX's references, each layer's gradient is added to the
sum where it is made, in arrays that the loop and the loop over layers change in place. What remains
beside the sum is the gradient of one repetition of the pattern.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


class GradientSums:
  """The sum of gradients of some parameters, of at least float32.

  Parameters stored in less have a set of gradients for each pass after all, in their type: JAX
  takes gradients in it, and in such a sum small terms of many would be rounded away.
  """

  def __init__(self, params: Any):
    self._params = params
    self._sums = jax.tree.map(lambda x: jax.new_ref(jnp.zeros(x.shape, _wide(x))), params)

  def add(self, pull_back: Any, adjoint: Any, others: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """Adds a gradient.

    Args:
      pull_back: `jax.vjp`'s second result for a function of the parameters, and of others.
      adjoint: of the function's result.
      others: the other arguments' values, floating-point arrays.

    Returns:
      the gradients with respect to the others.
    """
    places = jax.tree.map(_place, self._params, self._sums)
    of_others = jax.tree.map(lambda x: jax.new_ref(jnp.zeros_like(x)), others)
    pull_back.with_refs(places, *of_others)(adjoint)
    jax.tree.map(_move, self._sums, places)
    return jax.tree.map(jax.freeze, of_others)

  def total(self) -> Any:
    """The sum; nothing can be added after."""
    return jax.tree.map(jax.freeze, self._sums)


def _wide(leaf: jax.Array) -> jnp.dtype:
  return jnp.promote_types(leaf.dtype, jnp.float32)


def _place(leaf: jax.Array, total: Any) -> Any:
  return total if total.dtype == leaf.dtype else jax.new_ref(jnp.zeros_like(leaf))


def _move(total: Any, place: Any) -> None:
  if place is not total:
    # The TPU compiler fails (libtpu 0.0.52) when it tries to move the sum over devices of a
    # bfloat16 gradient out of a loop, behind the conversion.
    total[...] += lax.optimization_barrier(jax.freeze(place)).astype(total.dtype)
