"""The two types that every module with parameters takes."""

from __future__ import annotations

from typing import Protocol, TypedDict

import jax.numpy as jnp


class Dtypes(TypedDict):
  """The keyword arguments of a module's types.

  Attributes:
    dtype: type of the arithmetic and the result.
    param_dtype: type of the stored parameters.
  """

  dtype: jnp.dtype
  param_dtype: jnp.dtype


class HasDtypes(Protocol):
  """A module with the two types."""

  @property
  def dtype(self) -> jnp.dtype: ...

  @property
  def param_dtype(self) -> jnp.dtype: ...


FLOAT32: Dtypes = {"dtype": jnp.dtype(jnp.float32), "param_dtype": jnp.dtype(jnp.float32)}


def dtypes_of(module: HasDtypes) -> Dtypes:
  """The types of a module, as keyword arguments for the modules inside it."""
  return {"dtype": module.dtype, "param_dtype": module.param_dtype}
