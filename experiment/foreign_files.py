"""Refuses to write among files that this project did not write."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from base import buckets, paths
from base.errors import UserError

# What a scheduler or a shell leaves in a folder before the command starts, and what started it.
_OF_THE_JOB = ("*.log", "*.out", "*.err", "*.gin", "*.sh", "*.sbatch", "*.yaml", "*.yml")


def require_none(
  folder: Path, option: str, own: Collection[str], is_own: Callable[[Path], bool] = lambda _: False
) -> None:
  """Refuses a folder that holds files of somebody else, such as `docs` or a folder of text.

  Hidden files, logs, scripts and gin files are allowed: they are there before a job starts. A
  folder in a bucket is not listed, because it may hold millions of objects.

  Args:
    folder: the folder that a command will write; it may be missing.
    option: the option that named it, for the message.
    own: names that this project writes there.
    is_own: whether another file or folder in it is the project's.

  Raises:
    UserError: it holds other files.
  """
  if buckets.in_bucket(folder) or not folder.is_dir():
    return
  found = sorted(path.name for path in _foreign(folder, own) if not is_own(path))
  if found:
    new = shlex.quote(paths.shown(paths.free(folder / "new")))
    raise UserError(
      f"{paths.shown(folder)} holds files that {option} did not write, such as {found[0]}. "
      f"Name a new folder: {option}={new}"
    )


def _foreign(folder: Path, own: Collection[str]) -> Iterator[Path]:
  for path in folder.iterdir():
    name = path.name
    if path.suffix == ".new":  # NAME.PID.new: its process was killed while it replaced the file
      name = path.with_suffix("").stem
    is_of_job = any(fnmatch.fnmatch(path.name, pattern) for pattern in _OF_THE_JOB)
    if not (name.startswith(".") or name in own or is_of_job):
      yield path
