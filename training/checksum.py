"""Checksums of arrays, computed where the arrays are, and of JSON values."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
# 2**32 divided by the golden ratio: spreads consecutive indices over all 32 bits.
_SPREAD = 0x9E3779B1
_ZERO = np.uint32(0)
_PIECE_BYTES = 2**25


def checksums(tree: Any) -> list[int]:
  """One number per array of a tree, in the order of its leaves.

  The sum of the elements' bits, each multiplied by an odd number that depends on where the element
  stands, modulo 2**32. It is the same however the array is laid out over devices (integer sums
  commute), finds every change of a single bit, and misses any other change once in 2**32.

  Args:
    tree: arrays of 1, 2 or 4 bytes per element.
  """
  return [
    int(value) for value in jax.device_get([_checksum(leaf) for leaf in jax.tree.leaves(tree)])
  ]


def host_checksum(array: np.ndarray) -> int:
  """The number that `checksums` gives for an array, of an array that is on no device.

  Computed along the first axis in pieces: whole, a large array would be in memory several times
  over.
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


def seal(contents: dict[str, Any]) -> dict[str, Any]:
  """JSON values together with their checksum."""
  return {**contents, "crc32": _crc32(contents)}


def unseal(sealed: Any) -> dict[str, Any]:
  """The contents without their seal.

  Raises:
    ValueError: there are none, or not those that were sealed.
  """
  contents = dict(sealed or {})
  crc32 = contents.pop("crc32", None)
  if not contents:
    raise ValueError("cannot be read")
  if crc32 != _crc32(contents):
    raise ValueError("is not what was saved")
  return contents


def _crc32(contents: Any) -> int:
  return zlib.crc32(json.dumps(contents, sort_keys=True).encode())
