"""Checks the header of a safetensors file before anything relies on it.

Format: 8 bytes of length (little-endian), as many bytes of JSON (name to dtype, shape and
data_offsets), then the arrays without a gap; see https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from base import small_files

# The library's limit.
_MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8}
_BITS |= {"F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16}
_BITS |= {"BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}
_SHOWN = 80


def check_header(file: Path) -> None:
  """Checks a file's header against its size.

  Raises:
    ValueError: it is not a safetensors file, is truncated, or its arrays overlap or exceed it.
    OSError: it cannot be read.
  """
  small_files.require_regular(file)
  size = file.stat().st_size
  with file.open("rb") as opened:
    length = int.from_bytes(opened.read(8), "little")
    if size < 8 or length > size - 8 or length > _MAX_HEADER_BYTES:
      raise ValueError(f"its header would have {length:,} bytes, the file has {size:,}")
    text = opened.read(length)
  try:
    header = json.loads(text, object_pairs_hook=_without_duplicates)
  except RecursionError:
    raise ValueError("its header is nested too deep") from None
  except (json.JSONDecodeError, UnicodeDecodeError):
    raise ValueError("its header is not JSON") from None
  if not isinstance(header, dict):
    raise ValueError("its header is not a JSON object")
  places = [_place(name, entry) for name, entry in header.items() if name != _METADATA]
  end = 0
  for start, stop, name in sorted(places):
    if start != end:
      what = "overlaps the previous array" if start < end else "leaves a gap"
      raise ValueError(f"{_short(name)} {what} (at byte {start:,}, not {end:,})")
    end = stop
  if end != size - 8 - length:
    raise ValueError(f"its arrays take {end:,} bytes, the file has {size - 8 - length:,} for them")


def _place(name: str, entry: Any) -> tuple[int, int, str]:
  """Returns start, end and name of an array."""
  if not isinstance(entry, dict) or {"dtype", "shape", "data_offsets"} - entry.keys():
    raise ValueError(f"{_short(name)} lacks dtype, shape or data_offsets")
  dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
  if not isinstance(dtype, str) or dtype not in _BITS:
    raise ValueError(f"{_short(name)} is of an unknown type {_short(dtype)}")
  if not _are_sizes(shape) or len(shape) > 32:
    raise ValueError(f"{_short(name)} has no shape: {_short(shape)}")
  if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
    raise ValueError(f"{_short(name)} has no data_offsets: {_short(offsets)}")
  if math.prod(shape) * _BITS[dtype] != 8 * (offsets[1] - offsets[0]):
    raise ValueError(
      f"{_short(name)} of type {dtype} and shape {_short(shape)} does not take "
      f"{offsets[1] - offsets[0]:,} bytes"
    )
  return offsets[0], offsets[1], name


def _are_sizes(value: Any) -> bool:
  return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  result = dict(pairs)
  if len(result) != len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"its header has {_short(twice)} twice")
  return result


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
