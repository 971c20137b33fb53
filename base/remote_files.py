"""Files to read in buckets, on the Hugging Face hub and at web addresses, by fsspec.

Unlike `base.bucket_paths`, which also writes, this takes any address that can be read, and reads
ranges of a file. Nothing here imports a library before the first address.
"""

from __future__ import annotations

import functools
import io
import os
import posixpath
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar, cast

from base import buckets, file_ranges, remote_systems, temporary_copies
from base.errors import UserError
from base.remote_systems import RemoteError, require, told

_TRIES = 4
_PAUSE_SECONDS = 0.5
_REQUESTS = 16

_Answer = TypeVar("_Answer")
_kept: list[Callable[[], None]] = []  # clears what is kept until `forget`


class Status(NamedTuple):
  """Size in bytes, and 0 for the time, which `RemoteFile.version` takes the place of."""

  st_size: int
  st_mtime_ns: int = 0


class RemoteFile:
  """An address of a file, with the methods of `pathlib.Path` that reading needs."""

  def __init__(self, address: str, info: dict[str, Any] | None = None):
    """Takes what a listing said about the file; None asks when it is needed."""
    self._address = address
    self._found = info
    # Derived from a signed address, which is allowed for one file alone: a store refuses others.
    self._beside_signed = False

  @property
  def _scheme(self) -> str:
    return self._address.partition("://")[0]

  @property
  def _path(self) -> str:
    """The path on the server, without a query."""
    rest = self._address.partition("://")[2]
    return rest.partition("?")[0] if self._scheme.startswith("http") else rest

  @property
  def _info(self) -> dict[str, Any]:
    if self._found is None:
      with told(self._address, refused_is_absent=self._beside_signed):
        self._found = remote_systems.info(self._scheme, self._address)
    return self._found

  @property
  def name(self) -> str:
    """The last part of the path."""
    return posixpath.basename(self._path)

  @property
  def suffix(self) -> str:
    """The last ending of the name."""
    return posixpath.splitext(self.name)[1]

  @property
  def suffixes(self) -> list[str]:
    """All endings of the name."""
    return Path(self.name).suffixes

  @property
  def parent(self) -> RemoteFile:
    """The folder, without the query of a signed address."""
    found = RemoteFile(f"{self._scheme}://{posixpath.dirname(self._path)}")
    found._beside_signed = self._beside_signed or not self._address.endswith(self._path)
    return found

  def with_name(self, name: str) -> RemoteFile:
    """Returns the file beside it that has this name; one that a store refuses is absent.

    That holds beside a signed address, such as `https://host/a.bin?signature=...`: the signature is
    for that file, and is left out.
    """
    return self.parent / name

  def with_suffix(self, suffix: str) -> RemoteFile:
    """Returns the file beside it that has another ending."""
    return self.with_name(posixpath.splitext(self.name)[0] + suffix)

  def __truediv__(self, name: str) -> RemoteFile:
    found = RemoteFile(f"{self._address.rstrip('/')}/{name}")
    found._beside_signed = self._beside_signed
    return found

  def __str__(self) -> str:
    return self._address

  def __fspath__(self) -> str:
    return self._address

  as_posix = __repr__ = __fspath__

  def __eq__(self, other: object) -> bool:
    return isinstance(other, RemoteFile) and self._address == other._address

  def __lt__(self, other: Any) -> bool:
    return str(self) < str(other)

  def __hash__(self) -> int:
    return hash(self._address)

  @property
  def version(self) -> str:
    """Changes with the contents, as far as the server tells: a checksum, a tag or a time."""
    names = ("md5Hash", "crc32c", "blob_id", "ETag", "etag", "Content-MD5", "Digest")
    names += ("LastModified", "Last-Modified", "updated", "mtime")
    return next((f"{name} {self._info[name]}" for name in names if self._info.get(name)), "")

  def stat(self) -> Status:
    """Returns the size; where the server does not tell it, that of a copy.

    Raises:
      FileNotFoundError: there is no such file.
      RemoteError: see `told`.
    """
    if self._info.get("size") is None and (copy := _copy_of(self)):
      with copy:
        self._found = self._info | {"size": copy.seek(0, os.SEEK_END)}
    return Status(int(self._info.get("size") or 0))

  def is_dir(self) -> bool:
    """Whether files lie below it."""
    return self._kind() == "directory"

  def is_file(self) -> bool:
    """Whether it exists and is a file."""
    return self._kind() == "file"

  def exists(self) -> bool:
    """Whether it is a file or a folder."""
    return self._kind() is not None

  def _kind(self) -> str | None:
    try:
      return self._info.get("type", "file")
    except FileNotFoundError:
      return None

  def read_bytes(self) -> bytes:
    """Reads all."""
    with self.open() as file:
      return file.read()

  def read_text(self, encoding: str = "utf-8") -> str:
    """Reads all as text."""
    return self.read_bytes().decode(encoding)

  def open(self, mode: str = "rb", *, read_ahead: bool = True) -> Any:
    """Opens the file for reading.

    Args:
      mode: 'rb'.
      read_ahead: read more than asked for at once, for a file that is read on; False reads just the
        ranges that are asked for.
    """
    assert mode == "rb", mode
    if copy := _copy_of(self):
      return copy
    raw = file_ranges.Ranges(self, read_ahead)
    return io.BufferedReader(raw, file_ranges.FIRST_RANGE) if read_ahead else raw

  def range(self, start: int, stop: int) -> bytes:
    """Reads the bytes from `start` to `stop`, within the file; tries again if there is no answer.

    Raises:
      RemoteError: they cannot be read.
    """
    if copy := _copy_of(self):
      with copy:
        copy.seek(start)
        found = copy.read(stop - start)
    else:
      found = _asked_again(self, start, stop)
    if len(found) != stop - start:
      raise RemoteError(
        f"{self._address} has {len(found)} bytes from byte {start} on, not {stop - start}: it"
        " changed while it was read. Start again once nothing writes to it."
      )
    return found


def _asked_again(file: RemoteFile, start: int, stop: int) -> bytes:
  """Reads a range from the server; tries again if there is no answer."""
  for number in range(1, _TRIES + 1):
    try:
      with told(str(file)):
        return _range(file, start, stop)
    except RemoteError as error:
      if number == _TRIES or not error.may_pass:
        raise
      time.sleep(_PAUSE_SECONDS * 2**number)
    except FileNotFoundError:
      raise RemoteError(f"{file} is gone. Start again without it.") from None
  raise AssertionError


def of(text: str | os.PathLike) -> Path:
  """Returns the `RemoteFile` of an address, and the `Path` of other texts.

  Raises:
    RemoteError: see `require`.
  """
  if isinstance(text, Path | RemoteFile):
    return cast(Path, text)
  if not buckets.is_address(os.fspath(text)):
    return Path(text)
  require(os.fspath(text))
  return cast(Path, RemoteFile(os.fspath(text)))


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is an address."""
  return isinstance(path, RemoteFile) or buckets.is_address(os.fspath(path))


def until_forgotten(function: Callable[..., _Answer]) -> Callable[..., _Answer]:
  """Keeps a function's answers about files elsewhere until `forget` is called."""
  cached = functools.cache(function)
  _kept.append(cached.cache_clear)
  return cached


@until_forgotten
def matching(pattern: str) -> tuple[RemoteFile, ...]:
  """Returns the files at an address, or that match a pattern there; listed once in a process.

  Raises:
    RemoteError: the server or the bucket cannot be read, or the address is a folder.
  """
  require(pattern)
  scheme = pattern.partition("://")[0]
  magic = any(c in pattern for c in "*[") or ("?" in pattern and not scheme.startswith("http"))
  if not magic:
    file = RemoteFile(pattern)
    try:
      kind = file._info.get("type")
    except FileNotFoundError:
      _require_bucket(pattern)
      return ()
    except RemoteError:
      _require_bucket(pattern)
      raise
    if kind == "directory":
      raise RemoteError(
        f"{pattern} is a folder. Give the files in it: '{pattern.rstrip('/')}/**/*'."
      )
    return (file,)
  try:
    with told(pattern):
      found: dict[str, Any] = remote_systems.system(scheme).glob(pattern, detail=True)
  except FileNotFoundError:
    found = {}
  listed = {
    name if scheme.startswith("http") else f"{scheme}://{name}": info
    for name, info in found.items()
    if info.get("type") != "directory" and not name.endswith("/")
  }
  if not listed:
    _require_bucket(pattern)
    exact = RemoteFile(pattern)
    return (exact,) if not scheme.startswith("http") and exact.is_file() else ()
  files = [RemoteFile(name, info if info.get("size") else None) for name, info in listed.items()]
  at_once(RemoteFile.stat, files)  # A page of links tells no sizes.
  return tuple(sorted(files))


def at_once(ask: Callable[[Any], Any], files: Sequence[Any]) -> list[Any]:
  """Calls a function with each file, with many requests at once if any of them is remote."""
  if not any(map(is_remote, files)):
    return list(map(ask, files))
  with ThreadPoolExecutor(_REQUESTS) as requests:
    return list(requests.map(ask, files))


def forget() -> None:
  """Lists and asks anew from now on."""
  for clear in _kept:
    clear()


def _require_bucket(address: str) -> None:
  """Raises RemoteError if the bucket of an address does not exist."""
  if buckets.in_bucket(address):
    scheme, _, rest = address.partition("://")
    try:
      buckets.require(buckets.path(f"{scheme}://{rest.partition('/')[0]}"))
    except UserError as error:
      raise RemoteError(str(error), may_pass=error.may_pass) from None


def _range(file: RemoteFile, start: int, stop: int) -> bytes:
  system = remote_systems.system(file._scheme)
  if not file._scheme.startswith("http"):
    return system.cat_file(str(file), start=start, end=stop)
  # It compares what it gets with what it asked for, as its cat_file does not.
  with system.open(
    str(file),
    "rb",
    block_size=file_ranges.LARGEST_RANGE,
    size=file.stat().st_size,
    cache_type="none",
  ) as opened:
    opened.seek(start)
    return opened.read(stop - start)


def _copy_of(file: RemoteFile) -> IO[bytes] | None:
  """Opens a copy on this machine of a file whose server sends no ranges; None for others."""
  if not file._scheme.startswith("http"):
    return None
  return _copy(file, wanted=lambda: not _sends_ranges(file))


def copied(file: RemoteFile) -> IO[bytes]:
  """Opens a copy on this machine, for a library that reads paths alone; `name` is its path.

  At most two copies stay in the temporary folder.

  Raises:
    RemoteError: the file cannot be read.
  """
  copy = _copy(file, wanted=lambda: True)
  assert copy is not None
  return copy


def _copy(file: RemoteFile, wanted: Callable[[], bool]) -> IO[bytes] | None:
  def fetch(target: Path) -> None:
    with told(str(file)):
      remote_systems.system(file._scheme).get_file(str(file), str(target))

  key = f"{file} {file.version}"
  return temporary_copies.opened(key, file.name, fetch, wanted)


def _sends_ranges(file: RemoteFile) -> bool:
  if (file._info.get("size") or 0) < 2:
    return False
  try:
    return len(_asked_again(file, 1, 2)) == 1
  except RemoteError:
    raise
  except (ValueError, NotImplementedError):
    return False
