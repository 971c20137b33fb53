"""Functions with gradients of their own, in types that a checker follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import jax

Result = TypeVar("Result")


def custom_vjp(
  nondiff_argnums: tuple[int, ...],
) -> Callable[[Callable[..., Result]], jax.custom_vjp[Result]]:
  """`jax.custom_vjp` as a decorator with arguments.

  `functools.partial(jax.custom_vjp, ...)` is the same, but pyright then takes the result for
  `object`.

  Args:
    nondiff_argnums: the arguments that are static, as in `jax.custom_vjp`.
  """

  def decorate(function: Callable[..., Result]) -> jax.custom_vjp[Result]:
    made = jax.custom_vjp(function, nondiff_argnums=nondiff_argnums)
    return cast("jax.custom_vjp[Result]", made)

  return decorate
