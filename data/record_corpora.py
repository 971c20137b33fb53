"""A corpus of TensorFlow examples in ArrayRecord or TFRecord files, without TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from base import remote_files
from base.file_paths import FilePath
from base.ranges import Share
from data.encoding import Text
from data.file_corpora import DocumentFiles, files_of
from data.files import CorpusError, source
from data.heldout import check_fraction
from data.parts import Part

_RECORDS_AT_ONCE = 2048
# A longer record is taken for a damaged length.
_MOST_BYTES = 2**31


@dataclasses.dataclass(frozen=True)
class Records(DocumentFiles):
  """Files of `tf.train.Example`s with a feature of text, a document each.

  Files whose names end in `.array_record` are ArrayRecord, others TFRecord, plain or `.gz`.

  Attributes:
    files: a path or glob pattern (`**` crosses folders), or several.
    field: the feature; an example without it, or without a value of it, is an empty document.
    heldout_fraction: expected share of the documents that is held out; see `corpora.JsonLines`.
  """

  files: FilePath | Sequence[FilePath]
  field: str = "text"
  heldout_fraction: Share = 0.05

  name = "records"

  def __post_init__(self):
    check_fraction(self.heldout_fraction)

  def options(self) -> dict[str, Any]:
    """Returns what `describe` says without a look at the files."""
    return {
      "corpus": self.name,
      "patterns": self.files if isinstance(self.files, str) else list(self.files),
      "field": self.field,
      "heldout_fraction": self.heldout_fraction,
    }

  def undivided(self) -> Iterator[bytes]:
    """Yields the texts of all splits."""
    for part in self.parts(2**30):
      for text in self.texts(part):
        yield text.raw

  def largest_document(self) -> int | None:
    """Returns None: unknown without reading all records."""
    return None

  def parts(self, size: int) -> list[Part]:
    """Cuts ArrayRecord files of this machine at any record; other files are one part each."""
    found = []
    for path in files_of(self):
      total = path.stat().st_size
      if not _is_array_record(path) or remote_files.is_remote(path):
        found.append(Part(str(path), 0, total, total))
        continue
      records = _count(path, total, path.stat().st_mtime_ns)
      pieces = max(1, min(records, round(total / size)))
      cuts = [records * n // pieces for n in range(pieces + 1)]
      found += [Part(str(path), a, b, total // pieces) for a, b in itertools.pairwise(cuts)]
    return found

  def texts(self, part: Part) -> Iterator[Text]:
    """Yields the texts of a part's examples."""
    path, field = source(part.file), self.field.encode()
    if isinstance(path, remote_files.RemoteFile) and _is_array_record(path):
      records = _copied_array_records(path)
    elif _is_array_record(path):
      records = _array_records(path, path, part.start, part.stop)
    else:
      records = _tf_records(path)
    for number, record in enumerate(records, start=part.start):
      try:
        yield Text(_feature(record, field))
      except (IndexError, ValueError):
        raise CorpusError(
          f"{path}, record {number}: no tf.train.Example with text in {self.field!r}. Set another"
          " field, or replace the file."
        ) from None


def _is_array_record(path: Path) -> bool:
  return ".array_record" in path.name


@contextlib.contextmanager
def _opened(file: Path | str, path: Path) -> Iterator[Any]:
  """Opens an ArrayRecord file, whose faults may be found only when it is closed.

  Args:
    file: what is opened.
    path: its name in errors.
  """
  from array_record.python.array_record_module import ArrayRecordReader

  try:
    reader = ArrayRecordReader(str(file))
    try:
      yield reader
    finally:
      reader.close()
  except (RuntimeError, OSError, IndexError) as error:
    said = " ".join(str(error).split())[:150]
    raise CorpusError(f"{path} is not a readable ArrayRecord file ({said}). Replace it.") from None


@functools.lru_cache(2**16)
def _count(path: Path, size: int, mtime_ns: int) -> int:
  """Returns the number of records of a file of this size and time."""
  with _opened(path, path) as reader:
    return reader.num_records()


def _copied_array_records(path: remote_files.RemoteFile) -> Iterator[bytes]:
  """Yields the records of a file elsewhere, from a copy: the library reads paths of disks alone."""
  with remote_files.copied(path) as copy:
    with _opened(copy.name, cast(Path, path)) as reader:
      records = reader.num_records()
    yield from _array_records(copy.name, cast(Path, path), 0, records)


def _array_records(file: Path | str, path: Path, start: int, stop: int) -> Iterator[bytes]:
  for first in range(start, stop, _RECORDS_AT_ONCE):
    # Not open while the caller works: its errors are none of the file's.
    with _opened(file, path) as reader:
      records = reader.read(first, min(first + _RECORDS_AT_ONCE, stop))
    yield from records


def _tf_records(path: Path) -> Iterator[bytes]:
  """Yields the records of a TFRecord file; their checksums are not compared."""
  damaged = CorpusError(f"{path} is not a TFRecord file, or cut off. Replace it.")
  try:
    with (
      path.open("rb") as plain,
      gzip.GzipFile(fileobj=plain) if path.suffix == ".gz" else plain as file,
    ):
      while head := file.read(12):
        if len(head) < 12:
          raise damaged
        (size,) = struct.unpack("<Q4x", head)
        body = file.read(size + 4) if size < _MOST_BYTES else b""
        if len(body) < size + 4:
          raise damaged
        yield body[:-4]
  except (OSError, EOFError, zlib.error):
    raise damaged from None


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
  """Yields the numbers and contents of the length-delimited fields of a protobuf message."""
  place = 0
  while place < len(message):
    tag, place = _varint(message, place)
    if tag & 7 != 2:
      raise ValueError("not a field with a length")
    size, place = _varint(message, place)
    if place + size > len(message):
      raise ValueError("a field that is cut off")
    yield tag >> 3, message[place : place + size]
    place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = message[place]
    value |= (byte & 127) << shift
    place, shift = place + 1, shift + 7
    if byte < 128:
      return value, place


def _feature(example: bytes, name: bytes) -> bytes:
  """Returns the first value of a feature of bytes; b'' without one.

  Example.features = 1, Features.feature = 1 (a map: key = 1, value = 2), Feature.bytes_list = 1,
  BytesList.value = 1: tensorflow/core/example/{example,feature}.proto.
  """
  for _, features in _fields(example):
    for _, entry in _fields(features):
      parts = dict(_fields(entry))
      if parts.get(1) != name:
        continue
      for kind, values in _fields(parts.get(2, b"")):
        if kind != 1:
          raise ValueError("not a feature of bytes")
        return next((value for _, value in _fields(values)), b"")
  return b""
