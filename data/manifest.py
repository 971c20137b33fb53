"""The manifest of row files: their contents, source text and tokenizer."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from base import small_files
from base.errors import UserError
from data.files import shortened

MANIFEST_FILE = "manifest.json"
FORMAT = "packed rows"
# Of one set of files; rows in several shards have version 2, which older code refuses.
VERSION = 1
SHARDED_VERSION = 2
SHARD_NAME = re.compile(r"shard-[0-9]{5,}")

# Dtypes of row files, and an upper limit of the numbers in a manifest.
_DTYPES = ("uint8", "uint16", "uint32", "int32")
_MOST = 2**53

REMEDY = "Remove the directory: the next use prepares it again."


class RowFileError(UserError, ValueError):
  """Row files that cannot be used; the message says which, why and what to do."""


@dataclasses.dataclass(frozen=True)
class Counts:
  """Counts of packed documents, tokens and bytes.

  Attributes:
    documents: packed documents.
    empty_documents: documents without tokens, left out.
    invalid_utf8_documents: documents with invalid UTF-8, replaced by U+FFFD (registered tasks
      handle it themselves).
    cut_documents: documents that are split over rows.
    text_bytes: bytes of the packed documents as UTF-8.
    tokens: targets, including one EOS per document.
    unknown_tokens: targets with the tokenizer's unknown id.
    padding_tokens: padding at the ends of rows.
    unscored_tokens: targets that a loss mask excludes from the loss.
    unscored_bytes: bytes of text of those targets.
  """

  documents: int = 0
  empty_documents: int = 0
  invalid_utf8_documents: int = 0
  cut_documents: int = 0
  text_bytes: int = 0
  tokens: int = 0
  unknown_tokens: int = 0
  padding_tokens: int = 0
  unscored_tokens: int = 0
  unscored_bytes: int = 0


def total(counts: Iterable[Counts]) -> Counts:
  """Returns the sums of all counts."""
  sums = dict.fromkeys((field.name for field in dataclasses.fields(Counts)), 0)
  for part in counts:
    for name in sums:
      sums[name] += getattr(part, name)
  return Counts(**sums)


@dataclasses.dataclass(frozen=True)
class ArrayFile:
  """One flat little-endian array on disk."""

  dtype: str
  shape: tuple[int, ...]
  sha256: str

  @property
  def bytes(self) -> int:
    """Size of the file."""
    return np.dtype(self.dtype).itemsize * math.prod(self.shape)

  def open(self, path: Path) -> np.ndarray:
    """Maps the file into memory.

    Raises:
      RowFileError: it is missing, or has another size than when it was written.
    """
    self.check_size(path)
    return np.memmap(path, dtype=np.dtype(self.dtype).newbyteorder("<"), mode="r", shape=self.shape)

  def check_size(self, path: Path) -> None:
    """Compares the file's size, without opening it.

    Raises:
      RowFileError: it is missing, or has another size than when it was written.
    """
    found = -1
    with contextlib.suppress(OSError):
      status = os.stat(path)
      found = status.st_size if stat.S_ISREG(status.st_mode) else -1
    if found < 0:
      raise RowFileError(f"{path} is missing, though {MANIFEST_FILE} lists it. {REMEDY}")
    if found != self.bytes:
      state = "truncated" if found < self.bytes else "too long"
      raise RowFileError(
        f"{path} is {state}: it has {found} bytes, its manifest expects {self.bytes}"
        f" ({self.shape} {self.dtype}). {REMEDY}"
      )

  def verify(self, path: Path) -> None:
    """Reads the whole file and compares its sha256.

    Raises:
      RowFileError: they differ.
    """
    found = sha256_of(path)
    if found != self.sha256:
      raise RowFileError(
        f"{path} has sha256 {found}, its manifest expects {self.sha256}:"
        f" its content changed after it was written. {REMEDY}"
      )


def sha256_of(path: Path) -> str:
  """Returns the hexadecimal sha256 of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass(frozen=True)
class Shard:
  """Some of the rows, in files of their own.

  Attributes:
    folder: the folder of the files, relative to the manifest's; '' is the same.
    rows: number of rows.
    counts: counts of the shard's documents, tokens and bytes.
  """

  folder: str
  rows: int
  counts: Counts

  def path(self, name: str) -> str:
    """Returns the name of one of its files in the manifest."""
    return f"{self.folder}/{name}" if self.folder else name

  @property
  def scored_bytes(self) -> int:
    """Bytes of text in the loss."""
    return self.counts.text_bytes - self.counts.unscored_bytes


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The contents of `manifest.json`.

  Attributes:
    source: description of the corpus and split.
    vocabulary: description of the tokenizer.
    sequence_length: tokens per row.
    rows: number of rows.
    counts: counts of documents, tokens and bytes.
    files: the array files by name; those of a shard have its folder before their name.
    listed: the shards, in the order of their rows; empty if the files lie beside the manifest.
  """

  source: dict[str, Any]
  vocabulary: dict[str, Any]
  sequence_length: int
  rows: int
  counts: Counts
  files: dict[str, ArrayFile]
  listed: tuple[Shard, ...] = ()

  @property
  def shards(self) -> tuple[Shard, ...]:
    """The shards, at least one."""
    return self.listed or (Shard("", self.rows, self.counts),)

  def write(self, directory: Path) -> None:
    """Writes `manifest.json` into `directory`."""
    version = SHARDED_VERSION if self.listed else VERSION
    values = {"format": FORMAT, "version": version} | dataclasses.asdict(self)
    shards = values.pop("listed")
    if shards:
      values["shards"] = shards
    text = json.dumps(values, indent=2, sort_keys=False) + "\n"
    (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")

  @classmethod
  def read(cls, directory: Path) -> Manifest:
    """Reads the manifest of `directory`.

    Raises:
      RowFileError: it is missing, not JSON, incomplete, or of another format or version.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
      raise RowFileError(f"{directory} has no row files: {path} does not exist.")
    try:
      values = json.loads(small_files.read(path) or b"")
    except OSError as error:
      raise RowFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    except RecursionError:
      raise RowFileError(f"{path} is nested too deep to be a manifest. {REMEDY}") from None
    except ValueError as error:
      raise RowFileError(f"{path} is not valid JSON ({error}). {REMEDY}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
      raise RowFileError(f"{path} is not a manifest of {FORMAT}. {REMEDY}")
    version = values.get("version")
    if version not in (VERSION, SHARDED_VERSION) or type(version) is not int:
      raise RowFileError(
        f"{path} has format version {shortened(version)}; this version reads {VERSION} and"
        f" {SHARDED_VERSION}. {REMEDY}"
      )
    try:
      manifest = cls(
        source=_an_object(values["source"], "source"),
        vocabulary=_an_object(values["vocabulary"], "vocabulary"),
        sequence_length=_number(values["sequence_length"], "sequence_length", least=1),
        rows=_number(values["rows"], "rows", least=1),
        counts=_counts(_an_object(values["counts"], "counts")),
        files={
          name: _array_file(name, _an_object(file, name))
          for name, file in _an_object(values["files"], "files").items()
        },
        listed=_shards(values["shards"]) if version == SHARDED_VERSION else (),
      )
      found = sum(shard.rows for shard in manifest.shards)
      if found != manifest.rows:
        raise ValueError(f"its shards have {found} rows, not {manifest.rows}")
      return manifest
    except (KeyError, TypeError, ValueError) as error:
      told = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
      raise RowFileError(f"{path} is incomplete or damaged: {told[:200]}. {REMEDY}") from None


def _number(value: Any, name: str, *, least: int = 0) -> int:
  if type(value) is not int or not least <= value < _MOST:
    raise ValueError(f"{name} is {shortened(value)}, not a whole number of at least {least}")
  return value


def _an_object(value: Any, name: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise ValueError(f"{name} is {shortened(value)}, not an object")
  return value


def _counts(values: dict[str, Any]) -> Counts:
  counts = Counts(**{name: _number(value, name) for name, value in values.items()})
  if counts.unscored_tokens >= counts.tokens or counts.unscored_bytes >= counts.text_bytes:
    raise ValueError("its counts have no tokens or no bytes of text in the loss")
  return counts


def _shards(values: Any) -> tuple[Shard, ...]:
  if not isinstance(values, list) or not values:
    raise ValueError(f"shards is {shortened(values)}, not a list of objects")
  found = []
  for number, value in enumerate(values):
    folder = _an_object(value, f"shard {number}")["folder"]
    if not isinstance(folder, str) or not SHARD_NAME.fullmatch(folder):
      raise ValueError(f"shard {number} is in {shortened(folder)}, not in a folder shard-00000")
    counts = Counts(**{n: _number(v, n) for n, v in _an_object(value["counts"], "counts").items()})
    found.append(Shard(folder, _number(value["rows"], f"the rows of {folder}"), counts))
  return tuple(found)


def _array_file(name: str, values: dict[str, Any]) -> ArrayFile:
  folder, _, last = name.rpartition("/")
  if Path(last).name != last or (folder and not SHARD_NAME.fullmatch(folder)):
    raise ValueError(f"files names {shortened(name)}, which is not in its directory")
  if values["dtype"] not in _DTYPES:
    raise ValueError(f"the dtype of {name} is {shortened(values['dtype'])}, not one of {_DTYPES}")
  if not isinstance(values["shape"], list):
    raise ValueError(f"the shape of {name} is {shortened(values['shape'])}, not a list")
  if not isinstance(values["sha256"], str):
    raise ValueError(f"the sha256 of {name} is {shortened(values['sha256'])}, not a string")
  shape = tuple(_number(size, f"the shape of {name}") for size in values["shape"])
  fields: dict[str, Any] = values | {"shape": shape}
  return ArrayFile(**fields)
