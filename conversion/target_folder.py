"""Folders that appear completely or not at all, and errors about the contents of folders."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from base import bucket_copies, buckets, small_files, temporary_folders
from base.errors import UserError
from base.paths import shown
from experiment import directory_owner
from experiment.run_directory import RunDirectory
from training import checkpoint

# Written last into a bucket: they make a checkpoint, a run and Hugging Face's folder whole.
_LAST = ("commit_success.txt", "config.gin", "adapter_config.json", "config.json")
# Longest part of an error shown after the folder.
_SHOWN_LETTERS = 380


@contextlib.contextmanager
def told(source: Path) -> Iterator[None]:
  """Turns errors about a folder's contents into errors for the user."""
  try:
    yield
  except (ValueError, checkpoint.CheckpointError) as error:
    text = " ".join(str(error).split())
    text = text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}..."
    raise UserError(f"{shown(source)}: {text}") from error


@contextlib.contextmanager
def appearing(target: Path) -> Iterator[Path]:
  """Yields a folder to fill, which is renamed to `target` on success and removed on failure.

  For a target in a bucket it is a temporary folder, which is then copied there. The copy has an
  owner meanwhile: what a killed one left has that mark, and is removed by the next.
  """
  if buckets.in_bucket(target):
    _require_empty(target)
    RunDirectory(target).require_outside_of_runs("the target")
    with (
      directory_owner.owned(target),
      temporary_folders.made("to-bucket-") as made,
    ):
      _require_empty(target)  # another process may have been faster
      for left in _objects(target):
        left.unlink(missing_ok=True)
      yield made
      try:
        bucket_copies.upload(made, target, last=_LAST)
      except BaseException:
        for left in _objects(target):
          left.unlink(missing_ok=True)
        raise
    return
  _require_empty(target)
  target = target.resolve()
  RunDirectory(target).require_outside_of_runs("the target")
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
  except OSError as error:
    raise OSError(error.errno, error.strerror, str(target)) from None
  try:
    with directory_owner.owned(partial):
      partial.chmod(0o777 & ~_umask())
      try:
        yield partial
      except OSError as error:
        raise small_files.named(error, target) from error
    try:
      # Atomic, and replaces only an empty folder.
      partial.rename(target)
    except OSError as error:
      raise UserError(
        f"{shown(target)} was created by another process in the meantime ({error.strerror}). "
        "Name another folder."
      ) from None
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _require_empty(target: Path) -> None:
  if not target.exists():
    return
  if target.is_dir():
    names = {path.name for path in target.iterdir()}
    is_cut_off = directory_owner.LOCK_FILE in names and names.isdisjoint(_LAST)
    # A process that was killed while it took the folder left its own file beside the lock.
    others = [name for name in names if not name.startswith(directory_owner.LOCK_FILE)]
    if not names or (buckets.in_bucket(target) and (is_cut_off or not others)):
      return
  raise UserError(f"{shown(target)} exists and is not empty. Name another folder, or remove it.")


def _objects(target: Path) -> list[Path]:
  """Lists what lies in a bucket's folder apart from the files of its owner."""
  lock = directory_owner.LOCK_FILE
  return [path for path in buckets.files_below(target) if not path.name.startswith(lock)]


def _remove_leftovers(target: Path) -> None:
  """Removes leftovers of dead processes for the same target; keeps those of live ones."""
  for partial in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
    if directory_owner.is_abandoned(partial):
      shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
  mask = os.umask(0o022)
  os.umask(mask)
  return mask
