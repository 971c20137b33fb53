"""A folder of this machine that is copied to a bucket, for libraries that append to files."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from base import temporary_folders

# Between two copies, and the largest share of the time that copying may take.
_SECONDS = 30.0
_SHARE = 0.02


class MirroredFolder:
  """A temporary folder; what changed in it is copied to a bucket, at most twice a minute.

  Attributes:
    path: the folder.
  """

  def __init__(self, target: Path):
    """Makes an empty folder for a target in a bucket."""
    self.path = temporary_folders.make("mirrored-")
    self._target = target
    self._copied: dict[Path, tuple[int, int]] = {}
    self._next = time.monotonic() + _SECONDS
    self._told = False

  def copy_if_due(self, flush: Callable[[], object]) -> None:
    """Copies if enough time has passed; calls `flush` before."""
    if time.monotonic() >= self._next:
      flush()
      self._copy()

  def close(self) -> None:
    """Copies the rest and removes the folder."""
    self._copy()
    temporary_folders.remove(self.path)

  def _copy(self) -> None:
    began = time.monotonic()
    try:
      for file in sorted(file for file in self.path.rglob("*") if file.is_file()):
        status = file.stat()
        state = status.st_size, status.st_mtime_ns
        if self._copied.get(file) != state:
          (self._target / str(file.relative_to(self.path))).write_bytes(file.read_bytes())
          self._copied[file] = state
    except OSError as error:
      if not self._told:
        reason = error.strerror or error
        print(f"warning: {self._target} is not up to date: {reason}", file=sys.stderr, flush=True)
      self._told = True
    now = time.monotonic()
    self._next = now + max(_SECONDS, (now - began) / _SHARE)
