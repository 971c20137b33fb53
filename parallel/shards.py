"""Collectives of code that runs once per device.

A sharded step is written per device (`jax.shard_map` with every mesh axis manual), so that each
collective of the compiled program is in this file. Layers name logical axes; `per_device` sets the
mesh axes that they are split over. Outside of it nothing is split, and every function here is the
identity.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from base.custom_gradient import custom_vjp
from parallel import zero


class Region(NamedTuple):
  """The sharding of the arrays of a per-device program.

  Attributes:
    table: a (logical axis, mesh axes) pair per rule; only mesh axes of more than one device.
    sizes: (mesh axis, devices) pairs.
    stored_over: further mesh axes that stored parameters are split over, and gathered from before
      use (ZeRO stage 3).
  """

  table: tuple[tuple[str, tuple[str, ...]], ...]
  sizes: tuple[tuple[str, int], ...]
  stored_over: tuple[str, ...] = ()


_region = jax.make_user_context(default_value=None)  # part of JAX's cache keys


@contextlib.contextmanager
def per_device(region: Region) -> Iterator[None]:
  """Context manager for tracing a per-device program, inside the function of shard_map."""
  with _region(region):
    yield


@contextlib.contextmanager
def unsplit(axis: str) -> Iterator[None]:
  """Context manager for tracing as if a logical axis were not split, to find shapes."""
  region = _region.value
  if region is None:
    yield
    return
  table = tuple((name, () if name == axis else axes) for name, axes in region.table)
  with _region(region._replace(table=table)):
    yield


def is_per_device() -> bool:
  """Whether the traced code runs once per device."""
  return _region.value is not None


def has_rule(axis: str) -> bool:
  """Whether the rules of the traced program know a logical axis; any is known elsewhere."""
  region = _region.value
  return region is None or axis in dict(region.table)


def ruled_axes() -> tuple[str, ...]:
  """Returns the logical axes that the rules of the traced program know."""
  region = _region.value
  return () if region is None else tuple(dict(region.table))


def mesh_axes(axis: str) -> tuple[str, ...]:
  """Returns the mesh axes that a logical axis is split over; none outside of `per_device`."""
  region = _region.value
  return () if region is None else dict(region.table).get(axis, ())


def count(axis: str) -> int:
  """Returns the number of shards of a logical axis."""
  names = mesh_axes(axis)
  sizes = dict(_region.value.sizes) if names else {}
  return math.prod(sizes[name] for name in names)


def local(size: int, axis: str) -> int:
  """Returns the size of a shard of a logical axis."""
  return size // count(axis)


def copy_to_tensor_parallel(x: jax.Array, axis: str) -> jax.Array:
  """Returns x, which all shards of an axis read whole; its gradient is summed over the shards.

  With `reduce_from_tensor_parallel` the two ends of tensor parallelism: f and g of Shoeybi et al.
  2019 (Megatron-LM).
  """
  names = mesh_axes(axis)
  return _sum_gradient(x, names) if names else x


def copy_together_to_tensor_parallel(
  arrays: tuple[jax.Array, ...], axis: str
) -> tuple[jax.Array, ...]:
  """Does `copy_to_tensor_parallel` for several arrays in one collective.

  They agree in all but their last dimension.
  """
  if not mesh_axes(axis):
    return arrays
  ends = itertools.accumulate(array.shape[-1] for array in arrays[:-1])
  return tuple(
    jnp.split(copy_to_tensor_parallel(jnp.concatenate(arrays, axis=-1), axis), list(ends), axis=-1)
  )


def reduce_from_tensor_parallel(x: jax.Array, axis: str) -> jax.Array:
  """Sums what the shards of an axis contribute; each receives the gradient of the sum."""
  names = mesh_axes(axis)
  return _sum(x, names) if names else x


def total(x: jax.Array, *axes: str) -> jax.Array:
  """Sums over the shards of several axes, without a gradient."""
  names = tuple(name for axis in axes for name in mesh_axes(axis))
  return lax.psum(x, names) if names else x


@custom_vjp(nondiff_argnums=(1,))
def _sum_gradient(x, names):
  del names
  return x


_sum_gradient.defvjp(lambda x, names: (x, None), lambda names, _, g: (lax.psum(g, names),))


@custom_vjp(nondiff_argnums=(1,))
def _sum(x, names):
  return lax.psum(x, names)


_sum.defvjp(lambda x, names: (lax.psum(x, names), None), lambda names, _, g: (g,))


def stored_shape(axes: tuple[str | None, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the stored shape of a parameter from its shape in use, on this device."""
  dimension, shards = _storage(axes, shape)
  return tuple(n // shards if index == dimension else n for index, n in enumerate(shape))


def gather_parameter(
  stored: jax.Array, axes: tuple[str | None, ...], shape: tuple[int, ...]
) -> jax.Array:
  """Gathers a stored parameter for use on this device.

  The gradient of this all-gather is the reduce-scatter of ZeRO stage 3.
  """
  dimension, _ = _storage(axes, shape)
  if dimension is None:
    return stored
  return lax.all_gather(stored, _region.value.stored_over, axis=dimension, tiled=True)


def _storage(axes: tuple[str | None, ...], shape: tuple[int, ...]) -> tuple[int | None, int]:
  """Returns the dimension that storage splits further than use, and into how many parts."""
  region = _region.value
  if region is None or not region.stored_over:
    return None, 1
  shards = math.prod(dict(region.sizes)[name] for name in region.stored_over)
  return zero.split_dimension(axes, shape, shards), shards
