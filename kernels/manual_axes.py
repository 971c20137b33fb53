"""Makes hand-written kernels work inside `jax.shard_map(..., check_vma=True)`.

There every array's type says along which mesh axes it varies. A kernel must state this for its
outputs. The arguments of a `custom_vjp` must agree: if activations vary over the data axis and a
parameter does not, it returns cotangents of the wrong type. Therefore all arguments are cast to one
type *outside* the `custom_vjp`. The transpose of that cast is the sum over shards that the
parameter's gradient needs. Outside shard_map, and with `check_vma=False`, the cast is the identity.
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
  """Returns the type of a kernel output that varies along the same manual mesh axes as `like`."""
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type)
