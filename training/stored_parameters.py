"""Reads the parameters of a checkpoint one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from parallel.tree_paths import by_path
from training import checkpoint, checkpoint_reader, chosen_checkpoint, reading
from training.checkpoint_reader import CHECKSUMS, PARAMS, CheckpointError
from training.checksum import host_checksum
from training.padded_vocabulary import NO_ROWS, VocabularyRows


class StoredParameters(Mapping[str, np.ndarray]):
  """The parameters of a checkpoint by path; each is read when it is looked up, and not kept.

  Each is compared with its checksum. Padding rows of the vocabulary are as they were saved.

  Attributes:
    shapes: shapes by path.
  """

  def __init__(self, folder: Path, abstract: Any, where: str, rows: VocabularyRows = NO_ROWS):
    """Reads the checkpoint's description.

    Args:
      folder: the checkpoint's folder.
      abstract: shapes, dtypes and shardings of the model's parameters.
      where: name of the checkpoint in errors.
      rows: the model's; another number of padding rows may have been saved.

    Raises:
      CheckpointError: it is of another model.
      Damage: its description cannot be read.
    """
    self._folder, self._where = folder.absolute(), where
    found, saved, contents = checkpoint_reader.describe(
      self._folder, {PARAMS: abstract}, where, rows
    )
    types = by_path(found[PARAMS])
    self._leaves = {
      path: jax.ShapeDtypeStruct(leaf.shape, types[path].dtype, sharding=leaf.sharding)
      for path, leaf in by_path(saved[PARAMS]).items()
    }
    self.shapes = {path: tuple(leaf.shape) for path, leaf in self._leaves.items()}
    sums = contents[CHECKSUMS][PARAMS]
    if len(sums) != len(self._leaves):
      raise CheckpointError(
        f"{where} has {len(sums)} checksums for {len(self._leaves)} arrays. Restore its files from "
        "a copy, or choose another step."
      )
    self._sums = dict(zip(self._leaves, sums, strict=True))

  def __getitem__(self, path: str) -> np.ndarray:
    ocp = checkpoint_reader.orbax()
    wanted: Any = self._leaves[path]
    for key in reversed(path.split("/")):
      wanted = {key: wanted}
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with reading.quiet(), context:
      try:
        loaded: Any = reading.attempt(
          lambda: ocp.load_checkpointables(self._folder, {PARAMS: wanted})
        )[PARAMS]
      except (reading.Damage, reading.Refusal) as error:
        raise CheckpointError(f"{self._where}: {path} cannot be read ({error}).") from error
    for key in path.split("/"):
      loaded = loaded[key]
    array = np.asarray(loaded)
    if host_checksum(array) != self._sums[path]:
      raise CheckpointError(
        f"{self._where} cannot be read: the values of {path} differ from those that were saved. "
        "Choose another step, or restore its files from a copy."
      )
    return array

  def __iter__(self) -> Iterator[str]:
    return iter(self._leaves)

  def __len__(self) -> int:
    return len(self._leaves)


def open_parameters(
  run_dir: Path, abstract: Any, which: str | int = "latest", rows: VocabularyRows = NO_ROWS
) -> tuple[StoredParameters, int]:
  """Opens the parameters of a run's checkpoint.

  Args:
    run_dir: the run's directory.
    abstract, rows: as in `StoredParameters`.
    which: 'latest', 'best' (by held-out loss) or a step.

  Returns:
    the parameters, and the checkpoint's step.

  Raises:
    CheckpointError: the checkpoint is missing, damaged or of another model.
  """

  def read(folder: Path, where: str) -> StoredParameters:
    return StoredParameters(folder, abstract, where, rows)

  steps = checkpoint.available_steps(run_dir)
  return chosen_checkpoint.read(run_dir / checkpoint.FOLDER, steps, which, read)


def parameter_paths(run_dir: Path, which: str | int = "latest") -> set[str]:
  """Returns the paths of the parameters of a run's checkpoint, joined by slashes.

  Args:
    run_dir, which: as in `open_parameters`.

  Raises:
    CheckpointError: the checkpoint is missing or damaged.
  """

  def read(folder: Path, _: str) -> set[str]:
    return checkpoint_reader.parameter_paths(folder)

  return chosen_checkpoint.read(
    run_dir / checkpoint.FOLDER, checkpoint.available_steps(run_dir), which, read
  )[0]
