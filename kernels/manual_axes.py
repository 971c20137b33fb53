"""Makes hand-written kernels behave inside `jax.shard_map(..., check_vma=True)`.

There every array's type says along which mesh axes it varies. A kernel's outputs must state it, and
a `custom_vjp` whose arguments disagree (activations that vary over the data axis, a parameter that
does not) would return cotangents of the wrong type. Casting all arguments to one type *outside* the
`custom_vjp` solves both: the transpose of that cast is the sum over shards that the parameter
needs. Outside shard_map, and with `check_vma=False`, all of this is the identity.
"""

from __future__ import annotations

import jax


def vary_together(*arrays: jax.Array | None) -> tuple[jax.Array | None, ...]:
  """Casts arrays to vary along the union of their manual mesh axes; None stays None."""
  axes = frozenset().union(
    *(jax.typeof(a).manual_axis_type.varying for a in arrays if a is not None)
  )

  def cast(array):
    if array is None:
      return None
    missing = axes - jax.typeof(array).manual_axis_type.varying
    return jax.lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array

  return tuple(cast(a) for a in arrays)


def output(shape: tuple[int, ...], dtype, like: jax.Array) -> jax.ShapeDtypeStruct:
  """The type of a kernel output that varies along the same manual mesh axes as `like`."""
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type)
