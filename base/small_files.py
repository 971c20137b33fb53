"""Reads and writes small files completely, also in buckets.

A path may be missing, a pipe, endless, or on failing storage.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path
from typing import Any

from base import buckets

# Errors of the machine or the storage, not of a file's contents: the next read may succeed.
PASSING = {
  errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.ETIMEDOUT, errno.ESTALE, errno.EMFILE, errno.ENFILE,
  errno.EBUSY, errno.ENOBUFS, errno.ECONNRESET, errno.ENETUNREACH,
}  # fmt: skip
MOST_BYTES = 2**26
_TRIES = 3
_PAUSE_SECONDS = 0.5


class NotReadable(ValueError):
  """A path that cannot be read completely: a folder, a pipe, a device, or too large a file."""


def read(path: Path, most: int = MOST_BYTES) -> bytes | None:
  """Reads a file, None if it is missing; tries again if the storage fails.

  Args:
    path: the file; links are followed.
    most: the most bytes that it may have.

  Raises:
    NotReadable: it is not a regular file, or larger.
    OSError: it could not be read; the error has a filename.
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


def replace(path: Path, contents: str | bytes, *, durable: bool = True) -> None:
  """Writes a file atomically: readers, also after a crash, see the old or the new contents.

  A pipe or a link is replaced, not followed: in a received folder it may lead anywhere. In a
  bucket one request writes the object, which has the same effect.

  Args:
    path: the file.
    contents: text or bytes.
    durable: whether the contents also survive a crash of the machine, which takes longer.

  Raises:
    OSError: it cannot be written; the old file is unchanged.
  """
  if buckets.in_bucket(path):
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return
  new = path.with_name(f"{path.name}.{os.getpid()}.new")
  new.unlink(missing_ok=True)
  try:
    with new.open("xb") as file:
      file.write(contents.encode() if isinstance(contents, str) else contents)
      file.flush()
      if durable:
        os.fsync(file.fileno())
    new.replace(path)
  except OSError as error:
    raise named(error, path) from None
  finally:
    new.unlink(missing_ok=True)


def named(error: OSError, path: Path) -> OSError:
  """Returns an error with the path that was written, where the system does not tell it."""
  if error.errno is None or error.filename is not None:
    return error
  return OSError(error.errno, error.strerror, str(path))


def require_regular(path: Path) -> None:
  """Raises NotReadable for an existing path that is not a regular file: opening it might block."""
  if buckets.is_address(os.fspath(path)):
    return  # Buckets have no pipes, and reading a folder raises the error.
  try:
    mode = os.stat(path).st_mode
  except OSError:
    return  # Opening it raises the error.
  if not stat.S_ISREG(mode):
    raise NotReadable(f"{path} is not a regular file but {_kind(mode)}")


def require_regular_below(folder: Path) -> None:
  """Raises NotReadable unless a folder has only files and folders; call before a library reads."""
  if buckets.in_bucket(folder):
    return
  for path in folder.rglob("*"):
    if not path.is_dir():
      require_regular(path)


def _read(path: Path, most: int) -> bytes:
  if buckets.is_address(os.fspath(path)):
    return _read_object(path, most)
  require_regular(path)
  # It may have become a pipe in between, which would block without O_NONBLOCK.
  handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  with os.fdopen(handle, "rb") as file:
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
      raise NotReadable(f"{path} is not a regular file but {_kind(mode)}")
    found = file.read(most + 1)
  if len(found) > most:
    raise NotReadable(f"{path} is larger than {most:,} bytes")
  return found


def _read_object(path: Path, most: int) -> bytes:
  status: Any = path.stat()
  if path.is_dir():
    raise NotReadable(f"{path} is not a regular file but a folder")
  if status.st_size > most:
    raise NotReadable(f"{path} is larger than {most:,} bytes")
  return path.read_bytes()


def _kind(mode: int) -> str:
  if stat.S_ISDIR(mode):
    return "a folder"
  return "a pipe" if stat.S_ISFIFO(mode) else "a socket or a device"
