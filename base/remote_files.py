"""Files to read in buckets, on the Hugging Face hub and at web addresses, by fsspec.

Unlike `base.bucket_paths`, which also writes, this takes any address that can be read, and reads
ranges of a file. Nothing here imports a library before the first address.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import posixpath
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

from base import buckets, file_ranges, temporary_copies
from base.errors import UserError

# For each scheme: the extra of pyproject.toml, and the library that it needs.
SCHEMES = {
  "gs": ("gcs", "gcsfs"),
  "s3": ("s3", "s3fs"),
  "hf": ("hub", "huggingface_hub"),
  "https": ("http", "aiohttp"),
  "http": ("http", "aiohttp"),
}
_TRIES = 4
_PAUSE_SECONDS = 0.5
_REQUESTS = 16


class RemoteError(UserError, ValueError):
  """A file elsewhere that cannot be read now, or not by this account."""


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
      with told(self._address):
        self._found = _info(self._scheme, self._address)
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
    """The folder."""
    return RemoteFile(f"{self._scheme}://{posixpath.dirname(self._path)}")

  def with_name(self, name: str) -> RemoteFile:
    """Returns the file beside it that has this name."""
    return self.parent / name

  def with_suffix(self, suffix: str) -> RemoteFile:
    """Returns the file beside it that has another ending."""
    return self.with_name(posixpath.splitext(self.name)[0] + suffix)

  def __truediv__(self, name: str) -> RemoteFile:
    return RemoteFile(f"{self._address.rstrip('/')}/{name}")

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
    """Returns the size; 0 where the server does not tell it.

    Raises:
      FileNotFoundError: there is no such file.
      RemoteError: see `told`.
    """
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
      return copy.open("rb")
    raw = file_ranges.Ranges(self, read_ahead)
    return io.BufferedReader(raw, file_ranges.FIRST_RANGE) if read_ahead else raw

  def range(self, start: int, stop: int) -> bytes:
    """Reads the bytes from `start` to `stop`, within the file; tries again if there is no answer.

    Raises:
      RemoteError: they cannot be read.
    """
    for number in range(1, _TRIES + 1):
      try:
        with told(self._address):
          found = _range(self, start, stop)
        break
      except RemoteError as error:
        if number == _TRIES or not error.may_pass:
          raise
        time.sleep(_PAUSE_SECONDS * 2**number)
      except FileNotFoundError:
        raise RemoteError(f"{self._address} is gone. Start again without it.") from None
    if len(found) != stop - start:
      raise RemoteError(
        f"{self._address} has {len(found)} bytes from byte {start} on, not {stop - start}: it"
        " changed while it was read. Start again once nothing writes to it."
      )
    return found


def require(address: str) -> None:
  """Checks that an address can be read here.

  Raises:
    RemoteError: its scheme is unknown, or its library is not installed.
  """
  scheme = address.partition("://")[0]
  if scheme not in SCHEMES:
    known = ", ".join(f"{name}://" for name in SCHEMES)
    raise RemoteError(f"{address!r}: {scheme}:// cannot be read. Give a path, or one of {known}.")
  extra, library = SCHEMES[scheme]
  if importlib.util.find_spec(library) is None:
    raise RemoteError(
      f"{address}: {scheme}:// needs the extra {extra!r}: make install EXTRAS={extra} (or pip"
      f" install {library})."
    )


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


@functools.cache
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
      found: dict[str, Any] = _system(scheme).glob(pattern, detail=True)
  except FileNotFoundError:
    found = {}
  listed = {
    name if "://" in name else f"{scheme}://{name}": info
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
  matching.cache_clear()


def _require_bucket(address: str) -> None:
  """Raises RemoteError if the bucket of an address does not exist."""
  if buckets.in_bucket(address):
    scheme, _, rest = address.partition("://")
    try:
      buckets.require(buckets.path(f"{scheme}://{rest.partition('/')[0]}"))
    except UserError as error:
      raise RemoteError(str(error), may_pass=error.may_pass) from None


@contextlib.contextmanager
def told(address: str) -> Iterator[None]:
  """Turns errors of the services' libraries into one line.

  Raises:
    FileNotFoundError: there is nothing.
    RemoteError: no permission or no answer.
  """
  try:
    with buckets.told(address):
      yield
  except FileNotFoundError:
    raise
  except PermissionError as error:
    raise RemoteError(
      f"{address}: {error.strerror}. Log in with an account that may read it."
    ) from None
  except OSError as error:
    raise RemoteError(
      f"{address} cannot be read: {error.strerror or error}. Check the network and the address.",
      may_pass=True,
    ) from None


@functools.cache
def _system(scheme: str) -> Any:
  buckets._prepare()
  import fsspec

  options: dict[str, Any] = {"use_listings_cache": False}
  if scheme.startswith("http"):
    import aiohttp

    # The bytes of the file itself; and a copy of a large file may take long, but not stop.
    options["client_kwargs"] = {
      "auto_decompress": False,
      "headers": {"Accept-Encoding": "identity"},
      "timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60),
    }
  return fsspec.filesystem(scheme, **options)


def _info(scheme: str, address: str) -> dict[str, Any]:
  try:
    return dict(_system(scheme).info(address))
  except FileNotFoundError as error:
    # fsspec's file system of web addresses raises it for every fault.
    cause = error.__cause__
    if cause is not None and getattr(cause, "status", 404) not in (404, 410):
      raise cause from None
    if cause is not None and not hasattr(cause, "status"):
      raise cause from None
    raise


def _range(file: RemoteFile, start: int, stop: int) -> bytes:
  system = _system(file._scheme)
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


def _copy_of(file: RemoteFile) -> Path | None:
  """Returns a copy on this machine of a file whose server sends no ranges; None of others."""
  if not file._scheme.startswith("http"):
    return None

  def fetch(target: Path) -> None:
    with told(str(file)):
      _system(file._scheme).get_file(str(file), str(target))

  key = f"{file} {file.version}"
  return temporary_copies.of(key, file.name, fetch, wanted=lambda: not _sends_ranges(file))


def _sends_ranges(file: RemoteFile) -> bool:
  if file.stat().st_size < 2:
    return False
  try:
    with told(str(file)):
      return len(_range(file, 1, 2)) == 1
  except RemoteError:
    raise
  except (ValueError, NotImplementedError):
    return False
