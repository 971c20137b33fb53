"""Files of text: which a pattern names, whether they are text, and what their lines hold."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from base.errors import UserError


class CorpusError(UserError, ValueError):
  """A corpus that cannot be read; the message names the file, what is wrong and what to do."""


class NoFiles(CorpusError):
  """Nothing lies where the files of a corpus should be.

  Attributes:
    pattern: what matches no file.
  """

  def __init__(self, message: str, pattern: str = ""):
    super().__init__(message)
    self.pattern = pattern


# First bytes of what is no text. A word of text is enough to begin with two of a shorter signature.
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
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_BOM = b"\xef\xbb\xbf"

# The part of a file that is looked at, and what may be invalid in it: a text in Latin-1 is soon
# above that, a text with a damaged character here and there is not.
_SAMPLE = 2**20
_INVALID_SHARE = 0.02
_INVALID_BYTES = 8
_CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b"))


def shortened(value: Any, length: int = 60) -> str:
  """The representation of a value that a file holds, for a message."""
  text = repr(value)
  return text if len(text) <= length else text[: length - 3] + "..."


def matching_files(
  patterns: str | Sequence[str | os.PathLike[str]], option: str = "files"
) -> list[Path]:
  """Returns the files that match, by path, each once.

  A file of that very name goes before the pattern.

  Args:
    patterns: a path or glob pattern, or several.
    option: what they were given as, for messages: corpora.TextFiles.files.

  Raises:
    CorpusError: nothing matches, or what does is no file that can be read.
  """
  patterns = [patterns] if isinstance(patterns, str | os.PathLike) else list(patterns)
  if not patterns:
    raise CorpusError(f"{option}=[] names no file. Give a path or a pattern.")
  found = set()
  for pattern in (os.fspath(pattern) for pattern in patterns):
    if not pattern or "\0" in pattern:
      raise CorpusError(f"{option}={shortened(pattern)} is not a path. Correct it.")
    if os.path.lexists(pattern):
      found.add(_file(pattern))
      continue
    paths = [path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path)]
    if not paths:
      raise NoFiles(
        f"No file matches {pattern!r} ({option}). Correct the path; several stand in a list:"
        " \"['a.txt', 'b.txt']\".",
        pattern,
      )
    found.update(map(_file, paths))
  return [Path(p) for p in sorted(found)]


def _file(path: str) -> str:
  """Returns the path of a regular file."""
  try:
    mode = os.stat(path).st_mode
  except OSError as error:
    what = "is a link to nothing" if os.path.islink(path) else f"cannot be read: {error.strerror}"
    raise CorpusError(f"{path} {what}. Correct or remove it.") from None
  if stat.S_ISDIR(mode):
    raise CorpusError(
      f"{path} is a folder. Give the files in it: '{glob.escape(path.rstrip('/'))}/**/*'."
    )
  if not stat.S_ISREG(mode):
    raise CorpusError(f"{path} is not a regular file (a pipe, a socket or a device). Give a file.")
  return path


def describe_files(paths: Sequence[Path]) -> str:
  """Returns a digest of names, sizes and times: an edited file makes another cache."""
  stats = [(p.as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
  return hashlib.sha256(repr(stats).encode("utf-8", errors="surrogateescape")).hexdigest()


@contextlib.contextmanager
def opened_text(path: Path) -> Iterator[IO[bytes]]:
  """Opens a file of text after its byte order mark, if it has one.

  Raises:
    CorpusError: it cannot be read, or is no text in UTF-8.
  """
  try:
    with path.open("rb") as file:
      start = file.read(_SAMPLE)
      check_is_text(start, str(path))
      file.seek(len(_BOM) if start.startswith(_BOM) else 0)
      yield file
  except OSError as error:
    raise CorpusError(
      f"{path} cannot be read: {error.strerror or error}. Correct or remove the file."
    ) from None


def check_is_text(start: bytes, name: str) -> None:
  """Raises CorpusError if the first bytes of a file are not those of text in UTF-8."""
  kind = _kind(start)
  if kind in _COMPRESSED:
    raise CorpusError(f"{name} is {kind}, not text. Unpack it, and give what it holds.")
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
    raise CorpusError(
      f"{name} is no text in UTF-8: {invalid / len(start):.0%} of its first {len(start)} bytes are "
      "invalid or"
      f" control characters (at most {_INVALID_SHARE:.0%} may be). Convert it, such as with iconv "
      "-f"
      " ISO-8859-1 -t UTF-8 OLD > NEW, or leave it out."
    )


def _kind(start: bytes) -> str | None:
  """What a file is by its first bytes; None if that may be text."""
  if _BZIP2.match(start):
    return "bzip2"
  if start[257:262] == b"ustar":
    return "tar"
  if start.startswith(b"RIFF") and start[8:12] in (b"WAVE", b"AVI ", b"WEBP"):
    return "a media file"
  return next((kind for begin, kind in _SIGNATURES.items() if start.startswith(begin)), None)


def read_text(path: Path) -> bytes:
  """Returns all of a file, without a byte order mark; see `opened_text`."""
  with opened_text(path) as file:
    return file.read()


def json_lines(files: str | Sequence[str | Path]) -> Iterator[tuple[dict[str, Any], str]]:
  """Yields the objects of files with one JSON object per line, and where each stands ('file:line').

  Raises:
    CorpusError: a line that is not blank is no JSON object.
  """
  for path in matching_files(files):
    with opened_text(path) as file:
      for number, line in enumerate(file, start=1):
        if line.strip():
          place = f"{path}:{number}"
          yield _json_object(line, place), place


def looks_like_json_lines(path: Path) -> bool:
  """Whether a file has the name of JSON lines, and its first line is a JSON object."""
  if path.suffix not in (".jsonl", ".ndjson"):
    return False
  with contextlib.suppress(CorpusError), opened_text(path) as file:
    _json_object(file.readline(_SAMPLE), str(path))
    return True
  return False


def _json_object(line: bytes, place: str) -> dict[str, Any]:
  try:
    # Bytes that are no UTF-8 pass through as surrogates, to be replaced and counted with the rest.
    value = json.loads(line.decode("utf-8", errors="surrogateescape"))
  except RecursionError:
    raise CorpusError(f"{place}: nested too deep to be read. Correct or remove the line.") from None
  except ValueError as error:
    raise CorpusError(
      f"{place}: not a JSON object ({error}). Correct or remove the line."
    ) from None
  if not isinstance(value, dict):
    raise CorpusError(f"{place}: a {type(value).__name__}, not a JSON object. Correct the line.")
  return value


def keys_of(values: dict[str, Any]) -> str:
  """The keys of a line, for a message."""
  keys = [shortened(key, 30) for key in values]
  return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")


def to_bytes(text: str) -> bytes:
  """The UTF-8 of a text in which bytes that were none passed as surrogates."""
  try:
    return text.encode("utf-8", errors="surrogateescape")
  except UnicodeEncodeError:
    # JSON can spell half a surrogate pair (\ud800): bytes that are no UTF-8, counted as such.
    return text.encode("utf-8", errors="surrogatepass")
