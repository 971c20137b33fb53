"""Custom gradients with types that a checker follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import jax

Result = TypeVar("Result")


def custom_vjp(
  nondiff_argnums: tuple[int, ...],
) -> Callable[[Callable[..., Result]], jax.custom_vjp[Result]]:
  """Makes `jax.custom_vjp` a decorator with arguments.

  `functools.partial(jax.custom_vjp, ...)` is the same, but pyright infers `object` for its result.

  Args:
    nondiff_argnums: the arguments that are static, as in `jax.custom_vjp`.
  """

  def decorate(function: Callable[..., Result]) -> jax.custom_vjp[Result]:
    made = jax.custom_vjp(function, nondiff_argnums=nondiff_argnums)
    return cast("jax.custom_vjp[Result]", made)

  return decorate
