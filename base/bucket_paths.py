"""Paths in buckets as objects, for this project's files and for Orbax's.

Orbax makes its paths by `etils.epath`; the class here is registered there for `gs://` and `s3://`,
so that both see the same files and the same errors. Unlike etils' own class it never creates a
bucket, asks fewer questions, and needs no folder to exist: in an object store, only objects do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import io
import os
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any, Self

import fsspec
from etils import epath
from etils.epath import gpath

from base import buckets
from base.errors import UserError

# Seconds until the user is told about a service that does not answer.
_PATIENCE = 3.0


@dataclasses.dataclass(frozen=True)
class Status:
  """What is known of an object, by the names of `os.stat` and of etils.

  Attributes:
    st_size, length: bytes.
    st_mtime, mtime: time of the last write by the service's clock, in seconds.
    is_directory: whether it is a prefix of objects.
  """

  st_size: int
  st_mtime: float
  is_directory: bool

  @property
  def length(self) -> int:
    """As in etils."""
    return self.st_size

  @property
  def mtime(self) -> int:
    """As in etils."""
    return int(self.st_mtime)

  @property
  def st_ino(self) -> int:
    """Always 0."""
    return 0

  @property
  def st_mtime_ns(self) -> int:
    """As in `os.stat`."""
    return int(self.st_mtime * 1e9)


@epath.register_path_cls(("gs://", "s3://"))
class BucketPath(gpath.PosixGPath):
  """A path in a bucket; an object that ends in no slash is a file, a prefix of some is a folder."""

  @property
  def _key(self) -> str:
    """Bucket and key."""
    return "/".join(self.parts[2:])

  @property
  def _fs(self) -> Any:
    return _file_system(self.parts[1])

  def require_bucket(self) -> None:
    """Raises UserError if the bucket does not exist, or cannot be listed."""
    bucket = self.parts[2]
    address = f"{self.parts[1]}://{bucket}"
    try:
      with buckets.told(address), _patience(address):
        if self.parts[1] == "s3":
          self._fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
        else:
          self._fs.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    except FileNotFoundError:
      raise UserError(f"there is no bucket {address}. Create it, or correct the name.") from None
    except PermissionError as error:
      raise UserError(
        f"{address}: {error.strerror}. Log in with an account that may list, read, write and "
        "delete its objects."
      ) from None
    except OSError as error:
      raise UserError(
        f"{address} cannot be reached: {error.strerror or error}. Check the network and the "
        "address of the service.",
        may_pass=True,
      ) from None
    except ValueError as error:
      raise UserError(
        f"{address} cannot be used: {error}. Correct the variables of the service, such as its "
        "address."
      ) from None

  def exists(self) -> bool:
    """Whether it is an object or a folder."""
    return self._kind() is not None

  def is_file(self) -> bool:
    """Whether it is an object."""
    return self._kind() == "file"

  def is_dir(self) -> bool:
    """Whether objects lie below it."""
    return self._kind() == "directory"

  def is_symlink(self) -> bool:
    """Never."""
    return False

  def _kind(self) -> str | None:
    try:
      with buckets.told(self):
        return self._fs.info(self._key)["type"]
    except FileNotFoundError:
      return None

  def stat(self) -> Status:  # pyright: ignore[reportIncompatibleMethodOverride]
    """Size and time.

    Raises:
      FileNotFoundError: there is nothing.
    """
    with buckets.told(self):
      found = self._fs.info(self._key)
    time = found.get("LastModified") or found.get("mtime") or found.get("updated")
    seconds = 0.0 if time is None else _seconds(time)
    return Status(int(found.get("size") or 0), seconds, found["type"] == "directory")

  def lstat(self) -> Status:
    """As `stat`: there are no links."""
    return self.stat()

  def iterdir(self) -> Iterator[Self]:
    """Lists a folder, in the order of names."""
    own = self._key
    with buckets.told(self):
      found = self._fs.ls(own, detail=False)
    for name in sorted({entry.rstrip("/") for entry in found} - {own}):
      yield self / name.rpartition("/")[2]

  def glob(self, pattern: str) -> Iterator[Self]:
    """Lists what matches, in the order of names."""
    own = self._key
    with buckets.told(self):
      found = self._fs.glob(f"{glob.escape(own)}/{pattern}")
    for name in sorted(found):
      yield self / name.removeprefix(f"{own}/")

  def rglob(self, pattern: str) -> Iterator[Self]:
    """Lists all objects below; only for the pattern '*'.

    Raises:
      UserError: an object's name would be another one as a path.
    """
    assert pattern == "*", pattern
    own = self._key
    for key in self._keys_below():
      name = key.removeprefix(f"{own}/")
      # Others may have chosen it: as a path it may lead out of this folder.
      if any(part in ("", ".", "..") for part in name.split("/")):
        raise UserError(
          f"{f'{self}/{name}'[:200]!r} has an empty part, '.' or '..', and would be a file"
          " somewhere else. Remove it from the bucket, or copy the other files yourself."
        )
      yield self / name

  def _keys_below(self) -> list[str]:
    """Lists the keys of all objects below, in order."""
    with buckets.told(self):
      found = self._fs.find(self._key)
    return sorted(k for k in found if k.startswith(f"{self._key}/") and not k.endswith("/"))

  def walk(self, *, top_down: bool = True, on_error: Any = None) -> Iterator[Any]:
    """As `Path.walk`: from the top, folders that the caller removes are not listed."""
    del on_error
    found = self._fs.walk(self._key, topdown=top_down)
    while True:
      with buckets.told(self):
        listed = next(found, None)
      if listed is None:
        return
      root, folders, files = listed
      names = list(folders)
      yield self / root.removeprefix(self._key).lstrip("/"), names, list(files)
      if top_down:
        # fsspec lists what is left in its own collection, a list or a dictionary.
        for name in set(folders) - set(names):
          folders.pop(name) if isinstance(folders, dict) else folders.remove(name)

  def absolute(self) -> Self:
    """Itself."""
    return self

  def resolve(self, strict: bool = False) -> Self:
    """Itself."""
    del strict
    return self

  def expanduser(self) -> Self:
    """Itself."""
    return self

  def read_bytes(self) -> bytes:
    """Reads the object."""
    with buckets.told(self):
      return self._fs.cat_file(self._key)

  def write_bytes(self, data: Any) -> int:
    """Writes the object in one request: readers see the old or the new one, never a part."""
    with buckets.told(self):
      self._fs.pipe_file(self._key, bytes(data))
    return len(data)

  def create(self, data: bytes) -> bool:
    """Writes the object unless it exists; of several writers one succeeds. Returns whether."""
    try:
      with buckets.told(self):
        self._fs.pipe_file(self._key, data, mode="create")
    except FileExistsError:
      return False
    return True

  def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
    """Reads the object as text, UTF-8 by default."""
    return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

  def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
    """Writes text as the object, UTF-8 by default."""
    return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

  def open(self, mode: str = "r", **options: Any) -> IO[Any]:  # pyright: ignore
    """Opens the object to read (in blocks) or to write (whole, when it is closed)."""
    if mode.replace("b", "").replace("t", "") not in ("r", "w"):
      raise io.UnsupportedOperation(f"{self}: an object cannot be opened with mode {mode!r}")
    with buckets.told(self):
      return self._fs.open(self._key, mode, **options)

  def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
    """Writes an empty object."""
    del mode
    if not self.create(b"") and not exist_ok:
      raise FileExistsError(f"{self} exists")

  def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
    """Does nothing: a folder exists when an object lies in it."""
    del mode, parents
    if not exist_ok and self.exists():
      raise FileExistsError(f"{self} exists")

  def rmdir(self) -> None:
    """Does nothing: a folder ends with its last object."""

  def chmod(self, mode: int) -> None:
    """Does nothing: a bucket has other permissions."""

  def unlink(self, missing_ok: bool = False) -> None:
    """Removes the object."""
    try:
      with buckets.told(self):
        self._fs.rm_file(self._key)
    except FileNotFoundError:
      if not missing_ok:
        raise

  def rmtree(self, missing_ok: bool = False) -> None:
    """Removes all objects below."""
    found = self._keys_below()
    if not found and not missing_ok and not self.exists():
      raise FileNotFoundError(f"{self} does not exist")
    with buckets.told(self):
      if found:
        # It takes names with * and brackets as patterns, which other folders' objects may match.
        self._fs.rm([glob.escape(key) for key in found])

  def copy(self, dst: Any, overwrite: bool = False) -> Self:
    """Copies an object within the service.

    Raises:
      FileExistsError: the target exists, and is not to be overwritten.
    """
    target = self._new(dst)
    if not overwrite and target.exists():
      raise FileExistsError(f"{target} exists")
    with buckets.told(self):
      self._fs.cp_file(self._key, target._key)
    return target

  def replace(self, target: Any) -> Self:
    """Copies an object, or all of a folder, to another place and removes it here: not atomic."""
    new = self._new(target)
    files = list(self.rglob("*"))
    pairs = [(file, new / os.fspath(file.relative_to(self))) for file in files]
    for file, place in pairs or [(self, new)]:
      file.copy(place, overwrite=True)
    for file, _ in pairs or [(self, new)]:
      file.unlink(missing_ok=True)
    return new

  def rename(self, target: Any) -> Self:
    """As `replace`, for a target that does not exist."""
    if self._new(target).exists():
      raise FileExistsError(f"{target} exists")
    return self.replace(target)


@contextlib.contextmanager
def _patience(address: str) -> Iterator[None]:
  """Tells that an answer is waited for: the libraries try again for up to a minute."""
  tell = threading.Timer(
    _PATIENCE, print, (f"waiting for an answer from {address}",), {"file": sys.stderr}
  )
  tell.daemon = True
  tell.start()
  try:
    yield
  finally:
    tell.cancel()


@functools.cache
def _file_system(scheme: str) -> Any:
  return fsspec.filesystem(scheme)


def _seconds(time: Any) -> float:
  import datetime

  if isinstance(time, str):
    time = datetime.datetime.fromisoformat(time.replace("Z", "+00:00"))
  return time.timestamp() if isinstance(time, datetime.datetime) else float(time)
