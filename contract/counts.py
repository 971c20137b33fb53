"""Checks a model's declared FLOPs and parameters against traces, XLA and the initialised tree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend import core

from contract.finding import Finding, path_of, stated
from contract.subject import Subject
from models.accounting import abstract_parameters, list_parameters
from planning.hlo.text import HloProgram


def parameters(subject: Subject) -> Iterator[Finding]:
  """Compares the parameter table with the tree, and checks each parameter's logical axes."""
  table = list_parameters(subject.model)
  found = {path_of(p): x for p, x in jax.tree_util.tree_leaves_with_path(subject.params)}
  wrong = [
    parameter.path
    for parameter in table
    if parameter.path not in found
    or (found[parameter.path].shape, found[parameter.path].dtype)
    != (parameter.shape, parameter.dtype)
  ]
  wrong += sorted(found.keys() - {parameter.path for parameter in table})
  held = sum(leaf.size for leaf in found.values())
  says = f"{sum(parameter.count for parameter in table):,} declared, {held:,} initialised"
  yield stated("parameters", not wrong, says, wrong[0] if wrong else "")
  bare = [
    parameter.path
    for parameter in table
    if len(parameter.axes) != len(parameter.shape) or None in parameter.axes
  ]
  says = "each dimension names a logical axis (layers.parameter)"
  yield stated("logical axes", not bare, says, bare[0] if bare else "")


def flops(subject: Subject) -> Iterator[Finding]:
  """Compares declared FLOPs with the traced matrix products, and these with XLA's count.

  For a row of one token, declared and traced must be equal, since nothing is masked. In a longer
  row a causal product may compute the masked half, or leave it out.
  """
  model, length = subject.model, subject.window
  one, one_traced = model.matmul_flops(1), _traced(subject, 1)
  yield stated(
    "operations of a row of one token",
    one == one_traced,
    f"{one:,.0f} declared, {one_traced:,.0f} traced",
    "" if one == one_traced else "matmul_flops(width, length=1)",
  )
  traced = _traced(subject, length)
  growth, found = model.matmul_flops(length) - one, traced / length - one_traced
  holds = growth * (1 - 1e-9) <= found <= 2 * growth * (1 + 1e-9)
  yield stated(
    f"growth per token from rows of 1 to rows of {length}",
    holds,
    f"{growth:,.0f} declared, {found:,.0f} traced; it may be 1 to 2 times the declared",
    "" if holds else f"matmul_flops(width, length={length})",
  )
  # XLA drops products with known results: those with a zero state, or, at one token, those before a
  # softmax over one key.
  compiled = HloProgram(_jitted(subject).lower(*_row(subject, length)).compile().as_text()).flops()
  yield stated(
    f"XLA's program for a row of {length}",
    traced / 2 <= compiled <= traced,
    f"{traced:,.0f} traced, {compiled:,.0f} in the compiled program",
  )


def _jitted(subject: Subject) -> Any:
  return jax.jit(lambda params, tokens: subject.model.apply({"params": params}, tokens)[0])


def _row(subject: Subject, length: int) -> tuple[Any, jax.ShapeDtypeStruct]:
  params = nn.unbox(abstract_parameters(subject.model))
  return params, jax.ShapeDtypeStruct((1, length), jnp.int32)


def _traced(subject: Subject, length: int) -> int:
  """Counts the FLOPs of all products for one row, including loops."""
  return product_flops(_jitted(subject).trace(*_row(subject, length)).jaxpr.jaxpr)


def product_flops(jaxpr: core.Jaxpr) -> int:
  """Counts the FLOPs of all products of a trace; bodies of scans count as often as they run."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      ((contracted, _), _) = equation.params["dimension_numbers"]
      left, product = (
        cast(ShapedArray, variable.aval) for variable in (equation.invars[0], equation.outvars[0])
      )
      total += 2 * product.size * math.prod(left.shape[axis] for axis in contracted)
    trips = equation.params["length"] if equation.primitive.name == "scan" else 1
    total += trips * sum(map(product_flops, _inner(equation.params)))
  return total


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  """Lists the traces in an equation's parameters: bodies of loops, branches, called functions."""
  for leaf in jax.tree.leaves(params):
    if isinstance(leaf, core.ClosedJaxpr):
      yield leaf.jaxpr
    elif isinstance(leaf, core.Jaxpr):
      yield leaf
