"""Checksums of arrays, computed on their devices, and of JSON values."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from parallel.tree_paths import by_path

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
# 2**32 divided by the golden ratio: spreads consecutive indices over all 32 bits.
_SPREAD = 0x9E3779B1
_ZERO = np.uint32(0)
_PIECE_BYTES = 2**25


def checksums(tree: Any) -> list[int]:
  """Computes a checksum of each array of a tree, in the order of its leaves.

  The checksum is the sum of the elements' bits, each multiplied by an odd number that depends on
  its index, modulo 2**32. It does not depend on the sharding (integer sums commute), detects every
  change of a single bit, and misses any other change once in 2**32.

  Args:
    tree: arrays of 1, 2 or 4 bytes per element.
  """
  return [
    int(value) for value in jax.device_get([_checksum(leaf) for leaf in jax.tree.leaves(tree)])
  ]


def host_checksum(array: np.ndarray) -> int:
  """Computes the same checksum as `checksums` of an array on the host.

  It works in pieces of the first axis, so that a large array is not in memory several times.
  """
  if not array.ndim:
    return checksums(array)[0]
  stride = math.prod(array.shape[1:])
  rows = max(1, _PIECE_BYTES // max(1, stride * array.itemsize))
  total = 0
  for start in range(0, len(array), rows):
    first = np.uint32(start * stride % 2**32)
    total += int(_checksum(array[start : start + rows], first))
  return total % 2**32


@jax.jit
def _checksum(x: jax.Array, first: np.uint32 = _ZERO) -> jax.Array:
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
  index = jnp.full(x.shape, first, jnp.uint32)
  for axis, size in enumerate(x.shape):
    stride = np.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
    if size > 1:
      index += lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
  weight = index * np.uint32(_SPREAD)
  weight = (weight ^ (weight >> 15)) | np.uint32(1)
  return jnp.sum(bits * weight, dtype=jnp.uint32)


def description_checksum(tree: Any) -> int:
  """Computes a checksum of the paths, shapes and dtypes of a tree of (abstract) arrays."""
  arrays = by_path(tree).items()
  return _crc32(sorted([path, list(x.shape), str(np.dtype(x.dtype))] for path, x in arrays))


def seal(contents: dict[str, Any]) -> dict[str, Any]:
  """Adds a checksum to JSON values."""
  return {**contents, "crc32": _crc32(contents)}


def unseal(sealed: Any) -> dict[str, Any]:
  """Removes and verifies the checksum of JSON values.

  Raises:
    ValueError: the values are missing, or do not match the checksum.
  """
  contents = dict(sealed or {})
  crc32 = contents.pop("crc32", None)
  if not contents:
    raise ValueError("cannot be read")
  if crc32 != _crc32(contents):
    raise ValueError("differs from what was saved")
  return contents


def _crc32(contents: Any) -> int:
  return zlib.crc32(json.dumps(contents, sort_keys=True).encode())
