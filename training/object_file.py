"""A file in a bucket that grows, for metrics: an object store cannot append."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from base import small_files
from base.errors import UserError

# How much a crash may lose, and the largest share of the time that writing may take.
SECONDS = 5.0
_SHARE = 0.05
# Metrics of a run of a million steps have some 30 MB.
_MOST_BYTES = 2**30


class ObjectFile:
  """A file opened to append; the whole of it is in memory, and is written when it has changed.

  A thread writes it a few seconds after a change, and `sync` at once. A line is in the bucket
  before any checkpoint that counts it, because `training.loop` calls `sync` before it saves.
  """

  def __init__(self, path: Path, before_writing: Callable[[], None]):
    """Reads what there is.

    Args:
      path: the file in a bucket; it need not exist.
      before_writing: called before each write; ends a process that lost the directory.
    """
    self._path, self._before_writing = path, before_writing
    self._contents = bytearray(small_files.read(path, _MOST_BYTES) or b"")
    self._changed, self._told = False, False
    self._lock = threading.Lock()  # of the contents
    self._writing = threading.Lock()
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._write_at_times, name="metrics", daemon=True)
    self._thread.start()

  def write(self, data: bytes) -> None:
    """Appends."""
    with self._lock:
      self._contents += data
      self._changed = True

  def truncate(self, size: int) -> None:
    """Cuts the end off."""
    with self._lock:
      self._changed = self._changed or size < len(self._contents)
      del self._contents[size:]

  def flush(self) -> None:
    """Does nothing: the thread writes."""

  def tell(self) -> int:
    """Bytes so far."""
    return len(self._contents)

  def sync(self) -> None:
    """Writes what is not written yet.

    Raises:
      UserError: it cannot be written.
    """
    with self._writing:
      with self._lock:
        contents, changed, self._changed = bytes(self._contents), self._changed, False
      if not changed:
        return
      self._before_writing()
      try:
        self._path.write_bytes(contents)
      except Exception as error:  # the services' libraries have errors of their own
        self._changed = True
        reason = getattr(error, "strerror", None) or error
        raise UserError(
          f"{self._path} cannot be written: {reason}. What is saved is complete: "
          "fix the cause, and the same command continues.",
          may_pass=True,
        ) from error

  def close(self) -> None:
    """Writes the rest and ends the thread; warns if it cannot be written."""
    self._closed.set()
    self._thread.join()
    self._try()

  def _write_at_times(self) -> None:
    pause = SECONDS
    while not self._closed.wait(pause):
      began = time.monotonic()
      self._try()
      pause = max(SECONDS, (time.monotonic() - began) / _SHARE)

  def _try(self) -> None:
    try:
      self.sync()
    except UserError as error:
      if not self._told:
        print(f"warning: {error}", file=sys.stderr, flush=True)
      self._told = True
