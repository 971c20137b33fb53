"""Parameters with logical axes."""

from __future__ import annotations

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import errors
from jax import lax

from base.custom_gradient import custom_vjp
from layers.dtypes import HasDtypes, dtypes_of
from parallel import shards


def parameter(
  module: nn.Module,
  name: str,
  initializer: nn.initializers.Initializer,
  axes: tuple[str, ...],
  shape: tuple[int, ...],
  *,
  dtype: jnp.dtype | None = None,
  param_dtype: jnp.dtype | None = None,
) -> jax.Array:
  """Declares a parameter of a module and returns what this device uses of it.

  Args:
    module: the module, inside `setup` or a compact method, with fields `dtype` and `param_dtype`.
    name: the parameter's.
    initializer: called where the parameter is whole.
    axes: a logical axis per dimension.
    shape: of what this device uses: the whole parameter, unless the program runs per device.
    dtype: type of the result; None is the module's. The cast comes before ZeRO gathers the
      parameter: half the bytes.
    param_dtype: type of the stored array; None is the module's.
  """
  types = dtypes_of(cast(HasDtypes, module))
  expected = shards.stored_shape(axes, shape)
  # While parameters are made, `param` refuses a name that the module has already.
  if module.has_variable("params", name) and not module.is_initializing():
    stored = _given(module, name, expected)
  else:
    stored = module.param(
      name,
      nn.with_logical_partitioning(initializer, axes),
      expected,
      param_dtype or types["param_dtype"],
    )
  stored = cast(jax.Array, stored)  # out of the initializer's box
  return shards.gather_parameter(_cast(stored, jnp.dtype(dtype or types["dtype"])), axes, shape)


def _cast(stored: jax.Array, dtype: jnp.dtype) -> jax.Array:
  # Not `astype`: libraries that quantize (Qwix) replace `jnp.asarray`, and take their arrays there.
  if not isinstance(stored, jax.Array) or stored.dtype == dtype:
    return jnp.asarray(stored, dtype)
  return _cast_with_barrier(stored, dtype, stored.dtype)


@custom_vjp(nondiff_argnums=(1, 2))
def _cast_with_barrier(stored, dtype, stored_dtype):
  """Casts; the gradient is cast back behind a barrier.

  The TPU compiler fails (libtpu 0.0.52) when it tries to move the sum over devices of a bfloat16
  gradient out of a loop that adds gradients up, behind the conversion.
  """
  del stored_dtype
  return jnp.asarray(stored, dtype)


_cast_with_barrier.defvjp(
  lambda stored, dtype, stored_dtype: (jnp.asarray(stored, dtype), None),
  lambda dtype, stored_dtype, _, g: (lax.optimization_barrier(g).astype(stored_dtype),),
)


def _given(module: nn.Module, name: str, shape: tuple[int, ...]) -> jax.Array:
  """A parameter that the caller gave, with the check of its shape that `param` makes.

  `param` traces the initializer to find out its shape: a tenth of the time to trace a model.
  """
  value = nn.unbox(module.get_variable("params", name))
  if value.shape != shape:
    path = "/".join(("", *module.path))
    raise errors.ScopeParamShapeError(name, path, value.shape, shape)
  return value
