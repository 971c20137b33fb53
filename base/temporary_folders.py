"""Temporary folders that do not outlive their process, even if it is killed.

A process holds a lock on its folder, which the system releases when it ends. Whoever makes the next
folder of the same prefix on the same host removes those that nobody holds. Folders of other hosts
stay: on some shared file systems a host does not see the locks of another.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LOCK, _FILES = "lock", "files"
_held: dict[Path, int] = {}  # descriptors of locks of this process, by folder


def make(prefix: str) -> Path:
  """Makes an empty folder, below one of this prefix in the system's temporary folder.

  It is removed by `remove`, or after the end of this process by the next `make` with the prefix.
  """
  _remove_abandoned(prefix)
  while True:
    folder = Path(tempfile.mkdtemp(prefix=_of_this_host(prefix)))
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # Not all file systems have locks: nobody else has one then.
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    if (folder / _LOCK).exists():
      _held[folder] = descriptor
      (folder / _FILES).mkdir()
      return folder / _FILES
    os.close(descriptor)  # Another process took it for abandoned before it was locked.


def remove(folder: Path) -> None:
  """Removes a folder that `make` made."""
  _remove(folder.parent)
  if (descriptor := _held.pop(folder.parent, None)) is not None:
    os.close(descriptor)


@contextlib.contextmanager
def made(prefix: str) -> Iterator[Path]:
  """Yields a folder of `make`, and removes it."""
  folder = make(prefix)
  try:
    yield folder
  finally:
    remove(folder)


def _of_this_host(prefix: str) -> str:
  return f"{prefix}{os.uname().nodename}-"


def _remove_abandoned(prefix: str) -> None:
  """Removes folders of this prefix and host that no process holds; unreadable ones stay."""
  # Behind its prefix, mkdtemp writes eight characters: a host's name may begin another's.
  pattern = f"{glob.escape(_of_this_host(prefix))}????????/{_LOCK}"
  for lock in Path(tempfile.gettempdir()).glob(pattern):
    if lock.parent in _held:
      continue
    with contextlib.suppress(OSError):
      if not set(os.listdir(lock.parent)) <= {_LOCK, _FILES}:
        continue  # Another program's, which has a file of this name.
      descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(lock.parent)
      finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
  """Removes a folder, its lock last: what a killed removal leaves is found by the next one."""
  shutil.rmtree(folder / _FILES, ignore_errors=True)
  shutil.rmtree(folder, ignore_errors=True)
