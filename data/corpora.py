"""Corpora, the sources of documents: CPython, text files, JSON lines, TFDS, seqio tasks."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from base.file_paths import FilePath
from base.ranges import Share
from base.wording import type_in_words
from data import parts
from data.encoding import Text
from data.file_corpora import (
  LOOKED_AT,
  DocumentFiles,
  check_text,
  files_of,
)
from data.files import (
  CorpusError,
  NoFiles,
  compression,
  mapped,
  read_text,
  source,
  to_bytes,
)
from data.heldout import SPLITS, check_fraction, in_split
from data.json_lines import json_lines, json_lines_in, keys_of
from data.parts import Part

__all__ = [
  "SPLITS",
  "Corpus",
  "CorpusError",
  "Documents",
  "JsonLines",
  "NoFiles",
  "PythonLibrary",
  "RegisteredTask",
  "TextFiles",
  "Tfds",
]


class Corpus(Protocol):
  """A source of documents in a fixed order."""

  @property
  def name(self) -> str: ...  # a short name for directories

  def describe(self) -> dict[str, Any]:
    """Returns what determines the documents, as JSON values; quick: every launch calls it."""
    ...


class Documents(Corpus, Protocol):
  """A corpus with documents that Python reads."""

  def documents(self, split: str) -> Iterator[bytes]:
    """Yields the raw documents of 'train', 'heldout' or 'all'."""
    ...

  def total_bytes(self) -> int:
    """Returns the bytes of all splits together, for the progress bar."""
    ...

  def largest_document(self) -> int | None:
    """Returns the bytes of the largest document; None if unknown without reading all."""
    ...


# Tests repeat each other, the code page tables of `encodings` repeat themselves, topics.py holds
# the topics a second time, and site-packages are not CPython's.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings"}
_LEFT_OUT |= {"__pycache__", "ensurepip", "pydoc_data"}

# What was built on the machine, not written.
_BUILT = ("config-", "lib-dynload", "_sysconfigdata")


@dataclasses.dataclass(frozen=True)
class PythonLibrary:
  """The running CPython's texts: topics of the language reference and the library's source.

  About 10 MB of English and Python under the Python Software Foundation License, read from the
  interpreter's installation. A document is a topic or a source file; a hash of its name decides
  whether it is held out, so that Python versions agree on the files that they share.

  Attributes:
    heldout_fraction: expected share of the documents that is held out.
  """

  heldout_fraction: Share = 0.05

  name = "python-library"

  def __post_init__(self):
    check_fraction(self.heldout_fraction)

  def _files(self) -> list[tuple[str, Path]]:
    root = sysconfig.get_paths()["stdlib"]
    found = []
    for folder, folders, files in os.walk(root):
      # Skipped without listing: site-packages can be larger than all the rest.
      folders[:] = [f for f in folders if f not in _LEFT_OUT and not f.startswith(_BUILT)]
      paths = (Path(folder, f) for f in files if f.endswith(".py") and not f.startswith(_BUILT))
      found.extend((path.relative_to(root).as_posix(), path) for path in paths)
    return sorted(found)

  def describe(self) -> dict[str, Any]:
    """Returns the Python version and a digest of the files' names and sizes."""
    files = [(name, path.stat().st_size) for name, path in self._files()]
    return {
      "corpus": self.name,
      "license": "PSF-2.0",
      "python": platform.python_version(),
      "files": hashlib.sha256(repr(files).encode()).hexdigest(),
      "heldout_fraction": self.heldout_fraction,
    }

  def documents(self, split: str) -> Iterator[bytes]:
    """Yields topics by name, then source files by path."""
    from pydoc_data.topics import topics

    for topic in sorted(topics):
      if in_split(f"topics/{topic}".encode(), split, self.heldout_fraction):
        yield topics[topic].encode("utf-8")
    for name, path in self._files():
      if in_split(name.encode(), split, self.heldout_fraction):
        yield path.read_bytes()

  def total_bytes(self) -> int:
    """Returns the size of the source files (the topics are small in comparison)."""
    return sum(path.stat().st_size for _, path in self._files())

  def largest_document(self) -> int | None:
    """Returns the size of the largest source file."""
    return max(path.stat().st_size for _, path in self._files())


@dataclasses.dataclass(frozen=True)
class TextFiles(DocumentFiles):
  """Plain text files with one document each, or several documents with a separator.

  Attributes:
    files: a path or glob pattern (`**` crosses folders), or several.
    separator: text between the documents of a file, such as '<|endoftext|>'; not part of them.
      None: a file is a document.
    heldout_fraction: expected share of the documents that is held out, decided by a hash of the
      text, so that copies of a document are on one side. Where the hash leaves a split empty, this
      share of the text is held out at its end: whole documents, or the last lines of the last one.
  """

  files: FilePath | Sequence[FilePath]
  separator: str | None = None
  heldout_fraction: Share = 0.05

  name = "text-files"

  def __post_init__(self):
    check_fraction(self.heldout_fraction)
    if self.separator == "":
      raise CorpusError("separator='' separates nothing. Set None for a document per file.")

  def options(self) -> dict[str, Any]:
    """Returns what `describe` says without a look at the files."""
    return {
      "corpus": self.name,
      "patterns": self.files if isinstance(self.files, str) else list(self.files),
      "separator": self.separator,
      "heldout_fraction": self.heldout_fraction,
    }

  def check(self) -> None:
    """Checks the beginnings of a few files, before a process is started that reads all.

    Raises:
      CorpusError: a file is not text, or has JSON lines.
    """
    check_text(files_of(self))

  def undivided(self) -> Iterator[bytes]:
    """Yields the documents of all splits."""
    for path in files_of(self):
      yield from self._parts(path)

  def parts(self, size: int) -> list[Part]:
    """Cuts the files into parts of about `size` bytes; see `data.parts`."""
    cut = parts.of_large_document if self.separator is None else parts.of_file
    return [part for path in files_of(self) for part in cut(path, size)]

  def texts(self, part: Part) -> Iterator[Text]:
    """Yields the documents, or the piece of one, of a part."""
    path = source(part.file)
    if part.pieces > 1:
      yield parts.piece(part)
    elif self.separator is None:
      yield Text(read_text(path))
    else:
      yield from map(Text, self._parts(path, part.start, part.stop))

  def _parts(self, path: Path, first: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yields the documents of a file that begin in a range of its bytes."""
    if self.separator is None or not path.stat().st_size:
      yield read_text(path)
      return
    separator = self.separator.encode("utf-8")
    if compression(path):
      text = read_text(path)
      yield from text.removesuffix(separator).split(separator) if text else ()
      return
    # Not read at once: such a file is often a whole corpus.
    with mapped(path) as (text, start):
      last = len(text) if stop is None else stop
      if first > start:
        start = parts.document_at(text, separator, start, first)
      while start < last and (end := text.find(separator, start)) >= 0:
        yield text[start:end]
        start = end + len(separator)
      if start < min(last, len(text)):
        yield text[start:]

  def largest_document(self) -> int | None:
    """Returns the size of the largest file if files are documents."""
    if self.separator is not None:
      return None
    return max(path.stat().st_size for path in files_of(self))


@dataclasses.dataclass(frozen=True)
class JsonLines(DocumentFiles):
  """Files with one JSON object per line, a document each; blank lines are skipped.

  Attributes:
    files: a path or glob pattern (`**` crosses folders), or several.
    field: the object's key of the text.
    heldout_fraction: expected share of the documents that is held out, decided by a hash of the
      text, so that copies of a document are on one side. Where the hash leaves a split empty, this
      share of the text is held out at its end: whole documents, or the last lines of the last one.
  """

  files: FilePath | Sequence[FilePath]
  field: str = "text"
  heldout_fraction: Share = 0.05

  name = "json-lines"

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

  def check(self) -> None:
    """Checks the first lines, before a process is started that reads all.

    Raises:
      CorpusError: a line is not a JSON object, or has no text.
    """
    for values, place in itertools.islice(json_lines(files_of(self)), LOOKED_AT):
      self._text(values, place)

  def undivided(self) -> Iterator[bytes]:
    """Yields the texts of all splits."""
    for values, place in json_lines(files_of(self)):
      yield self._text(values, place)

  def parts(self, size: int) -> list[Part]:
    """Cuts the files into parts of about `size` bytes; see `data.parts`."""
    return [part for path in files_of(self) for part in parts.of_file(path, size)]

  def texts(self, part: Part) -> Iterator[Text]:
    """Yields the texts of the lines that begin in a part."""
    for values, place in json_lines_in(source(part.file), part.start, part.stop):
      yield Text(self._text(values, place))

  def _text(self, values: dict[str, Any], place: object) -> bytes:
    if self.field not in values:
      raise CorpusError(
        f"{place}: no {self.field!r}, only {keys_of(values) or 'nothing'}. Set JsonLines.field"
        " (--gin.JSON_FIELD=...; of launch.vocabulary, --field=...)."
      )
    if not isinstance(values[self.field], str):
      found = type_in_words(values[self.field])
      raise CorpusError(f"{place}: {self.field!r} is {found}, not a string. Correct the line.")
    return to_bytes(values[self.field])

  def largest_document(self) -> int | None:
    """Returns None: unknown without reading all lines."""
    return None


@dataclasses.dataclass(frozen=True)
class Tfds:
  """A data set of TensorFlow Datasets with a text feature, and with the data set's splits.

  Attributes:
    dataset: its name with configuration and version, such as 'wikipedia/20230601.en:1.0.0'.
    field: the text feature.
    data_dir: the directory of the data; None is TFDS's default.
  """

  dataset: str
  field: str = "text"
  data_dir: FilePath | None = None

  def __post_init__(self):
    if ":" not in self.dataset:
      raise CorpusError(
        f"dataset={self.dataset!r} has no version. Add one, such as '{self.dataset}:1.0.0'."
      )

  @property
  def name(self) -> str:
    """The data set's name."""
    return "tfds-" + self.dataset

  def describe(self) -> dict[str, Any]:
    """Returns the data set and the field; the version in its name identifies the content."""
    return {"corpus": "tfds", "dataset": self.dataset, "field": self.field}


@dataclasses.dataclass(frozen=True)
class RegisteredTask:
  """A task of seqio's registry, with its preprocessing, vocabulary and splits.

  The cache does not detect changes of the task's code: delete it after a change.

  Attributes:
    task: the registered name.
    module: the module that registers it when imported.
    features: output features to join, in this order, into one document.
    seed: seed of random preprocessing; seqio accepts none for a source without one.
    loss_on: the features in the loss, such as ('targets',) for prompts and responses; None is all.
  """

  task: str
  module: str | None = None
  features: Sequence[str] = ("targets",)
  seed: int | None = None
  loss_on: Sequence[str] | None = None

  def __post_init__(self):
    unknown = [name for name in self.loss_on or () if name not in self.features]
    if unknown or self.loss_on == ():
      raise CorpusError(
        f"loss_on={list(self.loss_on or ())} must be some of features={list(self.features)}, or"
        " None."
      )

  @property
  def has_loss_mask(self) -> bool:
    """Whether the loss is on only some of the tokens."""
    return self.loss_on is not None

  @property
  def name(self) -> str:
    """The task's name."""
    return "seqio-" + self.task

  def describe(self) -> dict[str, Any]:
    """Returns the fields."""
    masked = {}
    if self.loss_on is not None:
      # Names rows apart from those of a version without an empty answer's end in the loss.
      masked = {"loss_on": list(self.loss_on), "empty_answers": "their end is scored"}
    return {
      "corpus": "seqio",
      "task": self.task,
      "module": self.module,
      "features": list(self.features),
      "seed": self.seed,
    } | masked
