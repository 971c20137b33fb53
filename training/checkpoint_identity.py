"""Reads the run's identity in a checkpoint without Orbax, and moves other files away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from base import paths, small_files
from training import checkpoint, checkpoint_reader
from training.checkpoint import DAMAGED_FOLDER, FOLDER, CheckpointError
from training.checkpoint_reader import METADATA


def newest_identity(run_dir: Path) -> tuple[int, dict[str, Any]] | None:
  """Returns step and identity (see `training.loop.train`) of the newest undamaged checkpoint.

  None if no checkpoint has an identity: imported weights have none.

  Raises:
    OSError: a checkpoint's identity could not be read this time; an older one must not replace it.
  """
  for step in reversed(checkpoint.available_steps(run_dir)):
    contents = checkpoint_reader.sealed_contents(run_dir / FOLDER / str(step))
    metadata = (contents or {}).get(METADATA)
    identity = metadata.get("identity") if isinstance(metadata, dict) else None
    if isinstance(identity, dict) and isinstance(identity.get("config"), str):
      return step, identity
  return None


def set_strangers_aside(run_dir: Path) -> list[str]:
  """Moves files that are named like a checkpoint: Orbax would not save steps before them.

  Returns:
    a line for each moved file.

  Raises:
    CheckpointError: the checkpoints' folder is a file, or a file cannot be moved.
  """
  folder = run_dir / FOLDER
  if not folder.exists():
    return []
  if not folder.is_dir():
    raise CheckpointError(
      f"{paths.shown(folder)} is a file, and must be the folder of the checkpoints. Move the file."
    )
  told = []
  for path in sorted(folder.iterdir()):
    if path.name.isdecimal() and not _may_be_checkpoint(path):
      target = run_dir / DAMAGED_FOLDER / path.name
      number = 1
      while target.exists():
        number += 1
        target = target.with_name(f"{path.name}_{number}")
      try:
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
      except OSError as error:
        raise CheckpointError(
          f"{paths.shown(path)} is not a checkpoint and cannot be moved: {error.strerror}. Remove "
          "it."
        ) from None
      told.append(f"{paths.shown(path)} is not a checkpoint (moved to {paths.shown(target)})")
  return told


def _may_be_checkpoint(path: Path) -> bool:
  """Whether a path is a folder with only files: Orbax would wait for a pipe."""
  if not path.is_dir() or not any(path.iterdir()):
    return False
  try:
    small_files.require_regular_below(path)
  except small_files.NotReadable:
    return False
  return True
