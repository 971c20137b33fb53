"""What a checkpoint says of the run that it is of, read without Orbax.

And what else lies among checkpoints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from base import small_files
from training import checkpoint
from training.checkpoint import DAMAGED_FOLDER, FOLDER, CheckpointError
from training.checkpoint_reader import METADATA
from training.checksum import unseal

_METADATA_FILE = "_CHECKPOINT_METADATA"


def newest_identity(run_dir: Path) -> tuple[int, dict[str, Any]] | None:
  """Step and identity, as passed to `training.loop.train`, of the newest undamaged checkpoint.

  None if there is no checkpoint with an identity: imported weights have none.

  Raises:
    OSError: what a checkpoint says of itself could not be read this time; an older one is not
      its substitute.
  """
  for step in reversed(checkpoint.available_steps(run_dir)):
    try:
      text = small_files.read(run_dir / FOLDER / str(step) / _METADATA_FILE)
      identity = unseal(json.loads(text or b"")["custom_metadata"])[METADATA]["identity"]
    except (ValueError, KeyError, TypeError, RecursionError):
      continue
    if isinstance(identity, dict) and isinstance(identity.get("config"), str):
      return step, identity
  return None


def set_strangers_aside(run_dir: Path) -> list[str]:
  """Moves what is called like a checkpoint and is none: Orbax would save no step before it.

  Returns:
    a line for each that was moved.

  Raises:
    CheckpointError: a file is where the folder of the checkpoints belongs, or it cannot be moved.
  """
  folder = run_dir / FOLDER
  if not folder.exists():
    return []
  if not folder.is_dir():
    raise CheckpointError(
      f"{folder} is a file: a run keeps its checkpoints in a folder of that name. Move the file."
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
          f"{path} is no checkpoint and cannot be moved: {error.strerror}."
        ) from None
      told.append(f"{path} is no checkpoint (moved to {target})")
  return told


def _may_be_checkpoint(path: Path) -> bool:
  """Whether it is a folder of files alone: Orbax waits for a pipe, in old checkpoints too."""
  if not path.is_dir() or not any(path.iterdir()):
    return False
  try:
    small_files.require_regular_below(path)
  except small_files.NotReadable:
    return False
  return True
