"""A scan over chunks of time whose backward pass computes each chunk again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from training.gradient_sums import GradientSums

# (params, chunk, state, index) -> (results, state)
Chunk = Callable[[Any, Any, Any, jax.Array], tuple[Any, Any]]


def scan(function: Chunk, params: Any, state: Any, chunks: Any) -> tuple[Any, Any]:
  """Calls a function on one chunk after the other, with the state that the one before left.

  Of each chunk only the state before it is kept. The backward pass begins with the last chunk: it
  computes the chunk's activations again, and adds its gradients in place.

  Args:
    function: `function(params, chunk, state, index) -> (results, state)`; it must not use other
      arrays that have gradients.
    params: parameters; those that are not differentiated cost nothing.
    state: the state before the first chunk. Gradients pass its arrays of floating-point numbers.
    chunks: arrays [count, ...], without gradients.

  Returns:
    the results of all chunks, arrays [count, ...], and the state after the last one.
  """

  @jax.custom_vjp
  def run(params, state, chunks):
    def step(state, inputs):
      results, state = function(params, inputs[1], state, inputs[0])
      return state, results

    state, results = lax.scan(step, state, _numbered(chunks))
    return results, state

  def forward(params, state, chunks):
    trained, frozen = _split(params, lambda leaf: leaf.perturbed)
    trained, frozen, state, chunks = _values((trained, frozen, state, chunks))

    def step(state, inputs):
      results, after = function(_join(trained, frozen), inputs[1], state, inputs[0])
      return after, (results, state)

    state, (results, states) = lax.scan(step, state, _numbered(chunks))
    return (results, state), (trained, frozen, states, chunks)

  def backward(kept, adjoint):
    trained, frozen, states, chunks = kept
    of_results, of_state = jax.tree.map(_instantiated, adjoint, is_leaf=_is_zero)
    sums = GradientSums(trained)

    def step(of_state, inputs):
      (index, piece), of_results, state = inputs
      moving, fixed = _split(state, _is_float)

      def chunk(trained, moving):
        params, state = _join(trained, frozen), _join(moving, fixed)
        results, after = function(params, piece, state, index)
        return results, _split(after, _is_float)[0]

      _, pull_back = jax.vjp(chunk, trained, moving)
      return sums.add(pull_back, (of_results, of_state), (moving,))[0], None

    inputs = _numbered(chunks), of_results, states
    of_state, _ = lax.scan(step, _split(of_state, _is_float)[0], inputs, reverse=True)
    # JAX takes gradients in the parameters' types, so each sum is rounded once.
    gradient = jax.tree.map(lambda x, total: total.astype(x.dtype), trained, sums.total())
    return gradient, of_state, None

  run.defvjp(forward, backward, symbolic_zeros=True)
  return run(params, state, chunks)


def _numbered(chunks: Any) -> tuple[jax.Array, Any]:
  return jnp.arange(len(jax.tree.leaves(chunks)[0])), chunks


def _split(tree: Any, chosen: Callable[[Any], bool]) -> tuple[Any, Any]:
  """The leaves chosen and the others, each with None in place of the others."""

  def part(wanted):
    return jax.tree.map(lambda leaf: leaf if chosen(leaf) == wanted else None, tree)

  return part(True), part(False)


def _join(chosen: Any, others: Any) -> Any:
  """Merges the two trees of `_split`."""
  return jax.tree.map(
    lambda a, b: b if a is None else a, chosen, others, is_leaf=lambda leaf: leaf is None
  )


def _values(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf.value, tree)


def _is_zero(leaf: Any) -> bool:
  return isinstance(leaf, SymbolicZero)


def _instantiated(leaf: Any) -> Any:
  return jnp.zeros(leaf.shape, leaf.dtype) if _is_zero(leaf) and _is_float(leaf) else leaf


def _is_float(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.inexact)
