"""The manifest beside the row files: what they hold, of which text, under which vocabulary."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from base import small_files
from base.errors import UserError
from data.files import shortened

MANIFEST_FILE = "manifest.json"
FORMAT = "packed rows"
VERSION = 1

# What row files are made of, and more than any number in them.
_DTYPES = ("uint8", "uint16", "uint32", "int32")
_MOST = 2**53

REMEDY = "Remove the directory: the next use prepares it again."


class RowFileError(UserError, ValueError):
  """Row files that cannot be used as asked; the message says which, why and what to do."""


@dataclasses.dataclass(frozen=True)
class Counts:
  """What became of the text; every document is in one of `documents` and `empty_documents`.

  Attributes:
    documents: documents packed.
    empty_documents: documents without a single token, left out.
    invalid_utf8_documents: documents with bytes that are no UTF-8; U+FFFD takes their place (a
      registered task treats them as it was written to).
    cut_documents: documents that lie in more than one row.
    text_bytes: bytes of the packed documents as UTF-8.
    tokens: targets, one EOS per document included.
    unknown_tokens: targets that are the vocabulary's unknown id.
    padding_tokens: places at the ends of rows that hold no text.
    unscored_tokens: targets that a loss mask leaves out of the loss.
    unscored_bytes: bytes of text that those stand for.
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
      RowFileError: it is missing, or its size is not the one written.
    """
    if not path.is_file():
      raise RowFileError(f"{path} is missing, though {MANIFEST_FILE} lists it. {REMEDY}")
    found = path.stat().st_size
    if found != self.bytes:
      state = "truncated" if found < self.bytes else "too long"
      raise RowFileError(
        f"{path} is {state}: it has {found} bytes, its manifest expects {self.bytes}"
        f" ({self.shape} {self.dtype}). {REMEDY}"
      )
    return np.memmap(path, dtype=np.dtype(self.dtype).newbyteorder("<"), mode="r", shape=self.shape)

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
class Manifest:
  """What `manifest.json` says.

  Attributes:
    source: the description of corpus and split that the text came from.
    vocabulary: the vocabulary's description.
    sequence_length: tokens per row.
    rows: number of rows.
    counts: what became of the text.
    files: the array files by name.
  """

  source: dict[str, Any]
  vocabulary: dict[str, Any]
  sequence_length: int
  rows: int
  counts: Counts
  files: dict[str, ArrayFile]

  def write(self, directory: Path) -> None:
    """Writes `manifest.json` into `directory`."""
    values = {"format": FORMAT, "version": VERSION} | dataclasses.asdict(self)
    text = json.dumps(values, indent=2, sort_keys=False) + "\n"
    (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")

  @classmethod
  def read(cls, directory: Path) -> Manifest:
    """Reads the manifest of `directory`.

    Raises:
      RowFileError: it is missing, no JSON, of another format or version, or incomplete.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
      raise RowFileError(f"{directory} holds no row files: {path} does not exist.")
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
    if values.get("version") != VERSION:
      found = shortened(values.get("version"))
      raise RowFileError(
        f"{path} has format version {found}, this program reads {VERSION}. {REMEDY}"
      )
    try:
      return cls(
        source=_an_object(values["source"], "source"),
        vocabulary=_an_object(values["vocabulary"], "vocabulary"),
        sequence_length=_number(values["sequence_length"], "sequence_length", least=1),
        rows=_number(values["rows"], "rows", least=1),
        counts=_counts(_an_object(values["counts"], "counts")),
        files={
          name: _array_file(name, _an_object(file, name))
          for name, file in _an_object(values["files"], "files").items()
        },
      )
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
  if counts.unscored_tokens >= counts.tokens or counts.unscored_bytes > counts.text_bytes:
    raise ValueError("its counts leave no tokens in the loss, or less than no bytes")
  return counts


def _array_file(name: str, values: dict[str, Any]) -> ArrayFile:
  if Path(name).name != name:
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
