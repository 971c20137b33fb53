"""Evaluates a float32 function in float64, for values with 15 correct digits.

Layers use float32 explicitly in many places. So the function is traced as it is, and the trace is
evaluated with every float32 replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

# Parameters of primitives that are dtypes.
_TYPES = ("new_dtype", "preferred_element_type", "dtype")
# Primitives that only wrap a function, and the parameter with it.
_WRAPPED = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def evaluate(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
  """Converts a function to float64.

  Args:
    function: a function of float32 arrays; its gradient is lost.
    arguments: arrays with the shapes of later calls.

  Returns:
    a compiled function of float64 arrays, to be called inside `jax.enable_x64(True)`.

  Raises:
    NotImplementedError: it uses a kernel or a custom call without a float64 form.
  """
  closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
  structure = jax.tree.structure(shape)

  @jax.jit
  def run(*wide):
    results = _run(closed.jaxpr, closed.consts, jax.tree.leaves(wide))
    return jax.tree.unflatten(structure, results)

  return run


def _run(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
  values: dict[Any, Any] = {}

  def read(atom):
    return _wide(atom.val) if isinstance(atom, core.Literal) else values[atom]

  values.update(zip(jaxpr.constvars, map(_wide, consts), strict=True))
  values.update(zip(jaxpr.invars, arguments, strict=True))
  for equation in jaxpr.eqns:
    results = _apply(equation, [read(atom) for atom in equation.invars])
    values.update(zip(equation.outvars, results, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _wide(value: Any) -> Any:
  return jnp.asarray(value, jnp.float64) if jnp.result_type(value) == jnp.float32 else value


def _apply(equation: Any, inputs: list[Any]) -> list[Any]:
  name, params = equation.primitive.name, equation.params
  if name == "scan":
    return _scan(params, inputs)
  if name == "while":
    return _while(params, inputs)
  if name == "cond":
    branches = [_closed(branch) for branch in params["branches"]]
    return lax.switch(inputs[0], branches, *inputs[1:])
  if name in ("pallas_call", "ffi_call", "custom_call", "shard_map"):
    raise NotImplementedError(
      f"{name} has no float64 form. Choose an implementation in plain XLA operations, such as "
      "kernels/associative.gin."
    )
  inner = next((params[key] for key in _WRAPPED if key in params), None)
  if inner is not None:
    return _closed(inner)(*inputs)
  wide = {key: _wide_type(value) if key in _TYPES else value for key, value in params.items()}
  if name == "scatter-add":
    zero = jnp.zeros((), inputs[0].dtype)
    wide["update_jaxpr"] = jax.make_jaxpr(lax.add)(zero, zero).jaxpr
  results = equation.primitive.bind(*inputs, **wide)
  return results if equation.primitive.multiple_results else [results]


def _wide_type(dtype: Any) -> Any:
  return np.dtype(np.float64) if dtype is not None and dtype == jnp.float32 else dtype


def _closed(inner: Any) -> Callable[..., list[Any]]:
  jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
  return lambda *arguments: _run(jaxpr, consts, arguments)


def _scan(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
  consts, carried = _operands(params)
  body = _closed(params["jaxpr"])

  def step(carry, x):
    results = body(*inputs[:consts], *carry, *x)
    return tuple(results[:carried]), tuple(results[carried:])

  carry, ys = lax.scan(
    step,
    tuple(inputs[consts : consts + carried]),
    tuple(inputs[consts + carried :]),
    length=params["length"],
    reverse=params["reverse"],
  )
  return [*carry, *ys]


def _operands(params: dict[str, Any]) -> tuple[int, int]:
  """Returns how many of a scan's inputs are constants and how many are carried."""
  if "num_consts" in params:
    return params["num_consts"], params["num_carry"]
  # JAX 0.12 keeps the inputs as a tree of three groups.
  consts, carried, _ = params["ft_in"].unpack()
  return len(consts), len(carried)


def _while(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
  condition, body = _closed(params["cond_jaxpr"]), _closed(params["body_jaxpr"])
  first, second = params["cond_nconsts"], params["body_nconsts"]
  for_condition, for_body = inputs[:first], inputs[first : first + second]
  return list(
    lax.while_loop(
      lambda carry: condition(*for_condition, *carry)[0],
      lambda carry: tuple(body(*for_body, *carry)),
      tuple(inputs[first + second :]),
    )
  )
