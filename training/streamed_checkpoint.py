"""Writes a checkpoint of imported parameters, one array after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from training import checkpoint, reading
from training.checkpoint_reader import COMMIT_FILE
from training.checksum import description_checksum, host_checksum, seal

# Orbax's name for the tree of a checkpoint that is written in parts.
_PARTIAL = "state"
# Smaller arrays are written together: each part takes a third of a second.
_PART_BYTES = 2**26
# Compressed at once: as a single chunk, the largest array would be in memory two more times.
_CHUNK_BYTES = 2**26


def write_parameters(
  run_dir: Path,
  step: int,
  paths: Sequence[str],
  arrays: Iterable[tuple[str, np.ndarray]],
  metadata: dict[str, Any],
) -> None:
  """Writes parameters as a checkpoint for `training.checkpoint.load_parameters`.

  Args:
    run_dir: the run's directory; the checkpoint appears completely or not at all.
    step: step of the checkpoint.
    paths: paths of all arrays, joined by slashes, in tree order.
    arrays: path and array, in the same order. Each is released, so that only one large array is in
      memory.
    metadata: JSON values to keep with it.
  """
  ocp = checkpoint.orbax()
  folder = (run_dir / checkpoint.FOLDER / str(step)).absolute()
  folder.parent.mkdir(parents=True, exist_ok=True)
  sums: list[int] = []
  described: dict[str, jax.ShapeDtypeStruct] = {}
  part: dict[str, Any] = {}
  context = ocp.Context()
  context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
  with reading.quiet(), context:
    expected = iter(paths)
    for path, array in arrays:
      assert path == next(expected)
      sums.append(host_checksum(array))
      placed = _put(part, path, array)
      described[path] = jax.ShapeDtypeStruct(placed.shape, placed.dtype)
      # Released before the next one is read.
      del array, placed
      is_last = len(sums) == len(paths)
      if is_last or _bytes(part) >= _PART_BYTES:
        contents = {
          checkpoint.METADATA: metadata,
          checkpoint.CHECKSUMS: {checkpoint.PARAMS: sums},
          checkpoint.DESCRIPTIONS: {checkpoint.PARAMS: description_checksum(described)},
          checkpoint.METRICS: {},
        }
        # Data of the whole checkpoint is written with the last part.
        ocp.partial.save(folder, part, custom_metadata=seal(contents) if is_last else None)
        part = {}
    ocp.partial.finalize(folder)
  (folder / _PARTIAL).rename(folder / checkpoint.PARAMS)
  # A copy in a bucket is whole once it has this file.
  (folder / COMMIT_FILE).touch()


def _put(part: dict[str, Any], path: str, array: np.ndarray) -> jax.Array:
  *parents, last = path.split("/")
  for key in parents:
    part = part.setdefault(key, {})
  part[last] = jax.device_put(array)
  return part[last]


def _bytes(part: dict[str, Any]) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(part))
