"""Finds text files by pattern, checks that they are text, and reads their lines."""

from __future__ import annotations

import contextlib
import functools
import glob
import gzip
import hashlib
import io
import lzma
import mmap
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from base import file_ranges, remote_files
from base.errors import UserError
from base.wording import percent_above


class CorpusError(UserError, ValueError):
  """A corpus that cannot be read; the message names the file, the fault and what to do."""


class NoFiles(CorpusError):
  """No file matches a corpus's pattern.

  Attributes:
    pattern: the pattern.
  """

  def __init__(self, message: str, pattern: str = ""):
    super().__init__(message)
    self.pattern = pattern


# First bytes of files that are not text. Shorter signatures could be the start of a word.
_SIGNATURES = {
  b"\x1f\x8b": "gzip",
  b"PK\x03\x04": "a ZIP archive",
  b"\x28\xb5\x2f\xfd": "Zstandard",
  b"\xfd7zXZ\x00": "xz",
  b"7z\xbc\xaf\x27\x1c": "a 7z archive",
  b"\x04\x22\x4d\x18": "LZ4",
  b"PAR1": "Parquet",
  b"ARROW1\x00": "Arrow",
  b"Obj\x01": "Avro",
  b"ORC\x0a": "ORC",
  b"%PDF-": "PDF",
  b"\x89PNG\r\n": "an image",
  b"\xff\xd8\xff": "an image",
  b"GIF87a": "an image",
  b"GIF89a": "an image",
  b"\x80\x02": "a pickle",
  b"\x80\x03": "a pickle",
  b"\x80\x04": "a pickle",
  b"\x80\x05": "a pickle",
  b"\x89HDF\r\n": "HDF5",
  b"\x93NUMPY": "a NumPy array",
  b"SQLite format 3\x00": "a SQLite database",
  b"\x7fELF": "a program",
  b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a Microsoft Office document",
  b"\xff\xfe\x00\x00": "UTF-32",
  b"\x00\x00\xfe\xff": "UTF-32",
  b"\xff\xfe": "UTF-16",
  b"\xfe\xff": "UTF-16",
}
_COMPRESSED = {"gzip", "Zstandard", "xz", "bzip2", "LZ4", "a ZIP archive", "a 7z archive", "tar"}
# How compressed texts are opened, and about how much longer than the file they are.
_OPENERS = {"gzip": gzip.open, "xz": lzma.open, "Zstandard": None}
_COMPRESSION = 4
_ENDINGS = {".gz": "gzip", ".xz": "xz", ".zst": "Zstandard"}
_PACKED = tuple(_ENDINGS)
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_BOM = b"\xef\xbb\xbf"

# How much of a file is checked, and how much of that may be invalid: Latin-1 text soon exceeds it,
# text with a few damaged characters does not.
SAMPLE = 2**20
_INVALID_SHARE = 0.02
_INVALID_BYTES = 8
_CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b"))


def shortened(value: Any, length: int = 60) -> str:
  """Formats a value of a file for a message."""
  text = repr(value)
  return text if len(text) <= length else text[: length - 3] + "..."


def matching_files(
  patterns: str | Sequence[str | os.PathLike[str]], option: str = "files"
) -> list[Path]:
  """Returns the files that match, by path, each once.

  A file, or a folder on the way, with exactly the pattern's name is preferred to matches: in a
  folder `a [b]`, `*.txt` has its files. Files at addresses are listed once in a process (see
  `base.remote_files`).

  Args:
    patterns: a path or glob pattern, or several, each of which may be an address.
    option: the option's name in messages: corpora.TextFiles.files.

  Raises:
    CorpusError: nothing matches, or a match is not a readable file.
  """
  patterns = [patterns] if isinstance(patterns, str | os.PathLike) else list(patterns)
  if not patterns:
    raise CorpusError(f"{option}=[] names no file. Give a path or a pattern.")
  found = set()
  for pattern in (os.fspath(pattern) for pattern in patterns):
    if not pattern or "\0" in pattern:
      raise CorpusError(f"{option}={shortened(pattern)} is not a path. Correct it.")
    if remote_files.is_remote(pattern):
      found.update(_remote(pattern, option))
      continue
    if os.path.lexists(pattern):
      found.add(_file(pattern))
      continue
    found_here = glob.iglob(with_literal_folders(pattern), recursive=True)
    paths = [path for path in found_here if not os.path.isdir(path)]
    if not paths:
      raise NoFiles(
        f"no file matches {pattern!r} ({option}). Correct the path; give several as a list:"
        " \"['a.txt', 'b.txt']\".",
        pattern,
      )
    found.update(map(_file, _once(paths) if "**" in pattern else paths))
  return [remote_files.of(p) for p in sorted(found, key=str)]


def with_literal_folders(pattern: str) -> str:
  """Escapes the leading folders of a pattern that exist under exactly these names."""
  end = 0
  while (next_end := pattern.find("/", end)) >= 0 and os.path.isdir(pattern[: next_end + 1]):
    end = next_end + 1
  return glob.escape(pattern[:end]) + pattern[end:]


def _remote(pattern: str, option: str) -> Sequence[Any]:
  """Returns the files at an address or that match a pattern there."""
  try:
    found = remote_files.matching(pattern)
  except remote_files.RemoteError as error:
    raise (NoFiles(str(error), pattern) if error.may_pass else CorpusError(str(error))) from None
  if not found:
    raise NoFiles(
      f"no file matches {pattern!r} ({option}). Correct the address.",
      pattern,
    )
  return found


def source(file: str | os.PathLike[str]) -> Path:
  """Returns the path of a file of a corpus, which may be an address.

  Raises:
    CorpusError: its scheme is unknown or not installed.
  """
  try:
    return remote_files.of(file)
  except remote_files.RemoteError as error:
    raise CorpusError(str(error)) from None


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[tuple[Any, int]]:
  """Yields a file's bytes without reading them all, and where its text begins.

  The bytes have a length, and are indexed, cut, and searched by `find` and `rfind`.

  Raises:
    CorpusError: it cannot be read, or is not UTF-8 text.
  """
  with opened_text(path) as file:
    start = file.tell()
    if isinstance(path, remote_files.RemoteFile):
      yield file_ranges.RangedText(path), start
      return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
      yield text, start


def _once(paths: Sequence[str]) -> list[str]:
  """Leaves out files in folders that links show again: a circle of links shows them 40 times."""
  real = functools.cache(os.path.realpath)
  first: dict[str, str] = {}  # by a folder's real path: the path by which it is read
  kept = []
  for path in sorted(paths, key=lambda path: (path.count(os.sep), path)):
    folder = os.path.dirname(path)
    if first.setdefault(real(folder), folder) == folder:
      kept.append(path)
  return kept


def _file(path: str) -> str:
  """Returns the path of a regular file."""
  try:
    mode = os.stat(path).st_mode
  except OSError as error:
    what = "is a broken link" if os.path.islink(path) else f"cannot be read: {error.strerror}"
    raise CorpusError(f"{path} {what}. Correct or remove it.") from None
  if stat.S_ISDIR(mode):
    raise CorpusError(
      f"{path} is a folder. Give the files in it: '{glob.escape(path.rstrip('/'))}/**/*'."
    )
  if not stat.S_ISREG(mode):
    raise CorpusError(f"{path} is not a regular file (a pipe, a socket or a device). Give a file.")
  return path


def describe_files(paths: Sequence[Path]) -> str:
  """Returns a digest of names, sizes and times, so that an edited file has another cache.

  In place of a time, a remote file has the checksum or tag that its server tells.
  """
  stats = [(p.as_posix(), p.stat().st_size, _version(p)) for p in paths]
  return hashlib.sha256(repr(stats).encode("utf-8", errors="surrogateescape")).hexdigest()


def _version(path: Path) -> Any:
  if isinstance(path, remote_files.RemoteFile):
    return path.version
  return path.stat().st_mtime_ns


@contextlib.contextmanager
def opened_text(path: Path) -> Iterator[IO[bytes]]:
  """Opens a text file after its byte order mark, if it has one; unpacks gzip, xz and Zstandard.

  Raises:
    CorpusError: it cannot be read, or is not UTF-8 text.
  """
  try:
    with unpacked(path) as file:
      start = file.read(SAMPLE)
      check_is_text(start, str(path))
    with unpacked(path) as file:
      if start.startswith(_BOM):
        file.read(len(_BOM))
      yield file
  except (EOFError, lzma.LZMAError, zlib.error) as error:
    raise CorpusError(f"{path} is damaged or cut off ({error}). Replace the file.") from None
  except OSError as error:
    raise CorpusError(
      f"{path} cannot be read: {error.strerror or error}. Correct or remove the file."
    ) from None


def compression(path: Path) -> str | None:
  """Returns the kind of a compressed file that `opened_text` unpacks; None for others.

  Of a remote file its name's ending tells: a request for each of thousands would take minutes.
  """
  if remote_files.is_remote(path):
    return _ENDINGS.get(path.suffix)
  with path.open("rb") as file:
    kind = _kind(file.read(16))
  return kind if kind in _OPENERS else None


def is_utf8(text: bytes) -> bool:
  """Whether bytes are valid UTF-8."""
  try:
    text.decode("utf-8")
  except UnicodeDecodeError:
    return False
  return True


def text_bytes(path: Path) -> int:
  """Returns about how many bytes of text a file has, by its size and its name's ending."""
  packed = path.suffix in _PACKED
  return path.stat().st_size * (_COMPRESSION if packed else 1)


def without_packing(name: str) -> str:
  """Returns a file's name without the ending of a compressed file."""
  stem, ending = os.path.splitext(name)
  return stem if ending in _PACKED else name


def unpacked(path: Path) -> IO[bytes]:
  """Opens a file, or what a compressed one contains; see `opened_text`."""
  kind = compression(path)
  if kind is None:
    # Lines are read in large pieces: by default each of 8 kB is a call of the system.
    return path.open("rb") if remote_files.is_remote(path) else path.open("rb", SAMPLE)
  file: Any = path.open("rb") if remote_files.is_remote(path) else path
  if opener := _OPENERS[kind]:
    return cast(IO[bytes], opener(file, "rb"))
  try:
    import pyarrow
  except ImportError:
    raise CorpusError(
      f"{path} is Zstandard: install pyarrow to read it (the extra 'tables'), or unpack it."
    ) from None
  return io.BufferedReader(_Stream(pyarrow.input_stream(file, compression="zstd")))


class _Stream(io.RawIOBase):
  """A stream of pyarrow as a file: with lines, and with a place."""

  def __init__(self, stream: Any):
    self._stream = stream
    self._place = 0

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    data = self._stream.read(len(buffer))
    buffer[: len(data)] = data
    self._place += len(data)
    return len(data)

  def tell(self) -> int:
    return self._place

  def close(self) -> None:
    self._stream.close()
    super().close()


def check_is_text(start: bytes, name: str) -> None:
  """Raises CorpusError if the first bytes of a file are not UTF-8 text."""
  kind = _kind(start)
  if kind in _COMPRESSED:
    raise CorpusError(f"{name} is {kind}, not text. Unpack it, and give the files in it.")
  if kind in ("UTF-16", "UTF-32"):
    raise CorpusError(
      f"{name} is {kind}, not UTF-8. Convert it: iconv -f {kind} -t UTF-8 OLD > NEW."
    )
  if kind:
    raise CorpusError(f"{name} is {kind}, not text. Export it as text or JSON lines.")
  invalid = start.decode("utf-8", errors="replace").count("\ufffd")
  invalid -= start.count("\ufffd".encode())
  invalid += len(start) - len(start.translate(None, _CONTROL))
  if invalid >= _INVALID_BYTES and invalid > _INVALID_SHARE * len(start):
    if wide := _without_mark(start):
      raise CorpusError(
        f"{name} is {wide} without a mark, not UTF-8. Convert it: iconv -f {wide} -t UTF-8 OLD >"
        " NEW."
      )
    share = percent_above(invalid / len(start), _INVALID_SHARE)
    raise CorpusError(
      f"{name} is not UTF-8 text: {share} of its first {len(start)} bytes are "
      f"invalid or control characters (at most {_INVALID_SHARE:.0%} may be). Convert it, such as "
      "with iconv -f ISO-8859-1 -t UTF-8 OLD > NEW, or leave it out."
    )


def _without_mark(start: bytes) -> str | None:
  """Tells UTF-16 without a byte order mark: the upper bytes of most characters are 0."""
  zeros = [2 * start[first::2].count(0) / len(start) for first in (0, 1)]
  if max(zeros) < 0.5 or min(zeros) > 0.01:
    return None
  return "UTF-16BE" if zeros[0] > zeros[1] else "UTF-16LE"


def _kind(start: bytes) -> str | None:
  """Tells a file's format from its first bytes; None if it may be text."""
  if _BZIP2.match(start):
    return "bzip2"
  if start[257:262] == b"ustar":
    return "tar"
  if start.startswith(b"RIFF") and start[8:12] in (b"WAVE", b"AVI ", b"WEBP"):
    return "a media file"
  return next((kind for begin, kind in _SIGNATURES.items() if start.startswith(begin)), None)


def read_text(path: Path) -> bytes:
  """Reads a text file without its byte order mark; see `opened_text`."""
  with opened_text(path) as file:
    return file.read()


def to_bytes(text: str) -> bytes:
  """Encodes a text as UTF-8, with invalid bytes that passed as surrogates."""
  try:
    return text.encode("utf-8", errors="surrogateescape")
  except UnicodeEncodeError:
    # JSON can contain a lone surrogate (\ud800), which counts as invalid UTF-8.
    return text.encode("utf-8", errors="surrogatepass")
