"""Reads other programs' Orbax checkpoints, an array at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from base import small_files
from parallel import tree_paths
from training import orbax_globs, reading
from training.checkpoint import CheckpointError


class ForeignArrays(Mapping[str, np.ndarray]):
  """The arrays of a checkpoint by name; each is read when it is looked up, and not cached.

  Names are paths joined by slashes, without a leading 'params'.

  Attributes:
    shapes: shapes by name.
    types: numpy's dtype names by name.
  """

  def __init__(self, folder: Path):
    """Reads the description of the arrays.

    Raises:
      CheckpointError: Orbax cannot read it.
    """
    import orbax.checkpoint as ocp

    orbax_globs.enable()
    try:
      small_files.require_regular_below(folder)
    except small_files.NotReadable as error:
      raise CheckpointError(f"{error}. Download the checkpoint again.") from None
    self._folder = folder.absolute()
    self._reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    try:
      tree = _tree(reading.attempt(lambda: self._reader.metadata(self._folder)))
    except reading.Refusal as error:
      raise CheckpointError(
        f"{folder} could not be read ({_short(error)}). Fix the cause and start again."
      ) from error
    except Exception as error:  # damage, or a tree of another kind
      raise CheckpointError(
        f"{folder} is not a checkpoint that Orbax can read ({_short(error)})."
      ) from error
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    self._paths = {}
    for path, leaf in leaves:
      keys = tuple(tree_paths.name(key) for key in path)
      _check_leaf(folder, keys, leaf)
      name = "/".join(keys[1:] if keys[0] == "params" else keys)
      self._paths[name] = keys, leaf
    self.shapes = {name: tuple(leaf.shape) for name, (_, leaf) in self._paths.items()}
    self.types = {name: str(np.dtype(leaf.dtype)) for name, (_, leaf) in self._paths.items()}

  def __getitem__(self, name: str) -> np.ndarray:
    import orbax.checkpoint as ocp

    keys, _ = self._paths[name]
    wanted, how = np.zeros(0), ocp.RestoreArgs(restore_type=np.ndarray)
    for key in reversed(keys):
      wanted, how = {key: wanted}, {key: how}
    arguments = ocp.args.PyTreeRestore(item=wanted, restore_args=how, partial_restore=True)
    try:
      found: Any = reading.attempt(lambda: self._reader.restore(self._folder, args=arguments))
      for key in keys:
        found = found[key]
    except reading.Refusal as error:
      raise CheckpointError(
        f"{name[:120]} could not be read ({_short(error)}). Fix the cause and start again."
      ) from error
    except Exception as error:
      raise CheckpointError(
        f"{name[:120]} cannot be read ({_short(error)}). Download the checkpoint again."
      ) from error
    if np.shape(found) != self.shapes[name]:
      raise CheckpointError(
        f"{name[:120]} has shape {np.shape(found)}, but its description has {self.shapes[name]}."
      )
    return np.asarray(found)

  def __iter__(self) -> Iterator[str]:
    return iter(self._paths)

  def __len__(self) -> int:
    return len(self._paths)


def _check_leaf(folder: Path, keys: tuple[str, ...], leaf: Any) -> None:
  """Raises CheckpointError unless an entry describes an array inside the folder."""
  where = f"{folder}: {'/'.join(keys)[:120] or 'the checkpoint'}"
  if not keys or any(key in ("", ".", "..") or "/" in key or "\0" in key for key in keys):
    raise CheckpointError(f"{where} is not the name of an array.")
  shape: Any = getattr(leaf, "shape", None)
  try:
    sizes = tuple(shape)
    np.dtype(leaf.dtype)
  except (AttributeError, TypeError, ValueError):
    raise CheckpointError(f"{where} is not an array.") from None
  if not all(type(size) is int and size >= 0 for size in sizes):
    raise CheckpointError(f"{where} has no shape: {str(shape)[:80]}.")


def _short(error: Exception) -> str:
  """Returns the first line of an error, shortened."""
  return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _tree(metadata: Any) -> Any:
  """Returns the tree of array descriptions, which newer versions of Orbax wrap."""
  for attribute in ("item_metadata", "tree"):
    metadata = getattr(metadata, attribute, metadata)
  return metadata
