"""Small files, read and written whole.

What is there may be missing, a pipe, endless, or on failing storage.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

# Of the machine or the storage, not of a file's contents: these may read well the next time.
PASSING = {
  errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.ETIMEDOUT, errno.ESTALE, errno.EMFILE, errno.ENFILE,
  errno.EBUSY, errno.ENOBUFS, errno.ECONNRESET, errno.ENETUNREACH,
}  # fmt: skip
MOST_BYTES = 2**26
_TRIES = 3
_PAUSE_SECONDS = 0.5


class NotReadable(ValueError):
  """What is there is no file to read whole: a folder, a pipe, a device, or too large."""


def read(path: Path, most: int = MOST_BYTES) -> bytes | None:
  """The contents of a file, None if there is none; what the storage fails to do is tried again.

  Args:
    path: the file; a link is followed.
    most: bytes that it may hold.

  Raises:
    NotReadable: it is no regular file, or larger.
    OSError: it could not be read; it has a filename.
  """
  for number in range(1, _TRIES + 1):
    try:
      return _read(path, most)
    except (FileNotFoundError, NotADirectoryError):
      return None
    except OSError as error:
      if error.errno not in PASSING or number == _TRIES:
        raise OSError(error.errno, error.strerror, str(path)) from None
    time.sleep(_PAUSE_SECONDS)
  raise AssertionError


def replace(path: Path, contents: str | bytes) -> None:
  """Writes a file at once: a reader, or who comes after a crash, sees the old or the new one.

  A pipe or a link of that name is replaced, not followed: whoever sent a folder does not choose
  where it leads.

  Raises:
    OSError: it cannot be written; the old one is as it was.
  """
  new = path.with_name(f"{path.name}.{os.getpid()}.new")
  new.unlink(missing_ok=True)
  try:
    with new.open("xb") as file:
      file.write(contents.encode() if isinstance(contents, str) else contents)
      file.flush()
      os.fsync(file.fileno())
    new.replace(path)
  finally:
    new.unlink(missing_ok=True)


def require_regular(path: Path) -> None:
  """Raises NotReadable for what is there and no regular file: to open it might wait for ever."""
  try:
    mode = os.stat(path).st_mode
  except OSError:
    return  # Whoever opens it says what is wrong.
  if not stat.S_ISREG(mode):
    raise NotReadable(f"{path} is not a regular file but {_kind(mode)}")


def require_regular_below(folder: Path) -> None:
  """Raises NotReadable unless everything in a folder is a file or a folder: for what libraries
  open.
  """
  for path in folder.rglob("*"):
    if not path.is_dir():
      require_regular(path)


def _read(path: Path, most: int) -> bytes:
  require_regular(path)
  # It may have become a pipe in between, which would be waited for without O_NONBLOCK.
  handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  with os.fdopen(handle, "rb") as file:
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
      raise NotReadable(f"{path} is not a regular file but {_kind(mode)}")
    found = file.read(most + 1)
  if len(found) > most:
    raise NotReadable(f"{path} is larger than {most:,} bytes")
  return found


def _kind(mode: int) -> str:
  if stat.S_ISDIR(mode):
    return "a folder"
  return "a pipe" if stat.S_ISFIFO(mode) else "a socket or a device"
