"""Shared code of file corpora: finding and checking files, and splitting documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from base.file_paths import FilePath
from data import heldout
from data.files import (
  CorpusError,
  describe_files,
  matching_files,
  opened_text,
  text_bytes,
)
from data.heldout import in_split
from data.json_lines import looks_like_json_lines

# Number of files, or lines, that are checked before a process is started that reads all.
LOOKED_AT = 8


class HasFiles(Protocol):
  """Anything that is read from files.

  Attributes:
    files: a path or glob pattern, or several.
  """

  @property
  def files(self) -> FilePath | Sequence[FilePath]: ...


class FileCorpus(HasFiles, Protocol):
  """A corpus of documents in files.

  Attributes:
    name: a short name for directories.
    heldout_fraction: share of the documents that is held out.
  """

  @property
  def name(self) -> str: ...

  @property
  def heldout_fraction(self) -> float: ...

  def options(self) -> dict[str, Any]:
    """Returns the part of `describe` that does not depend on the files."""
    ...

  def undivided(self) -> Iterator[bytes]:
    """Yields the documents of all splits."""
    ...

  def largest_document(self) -> int | None:
    """Returns the bytes of the largest document; None if unknown without reading all."""
    ...


def files_of(corpus: HasFiles) -> list[Path]:
  """Returns the files that the patterns of a corpus match.

  Raises:
    CorpusError: see `data.files.matching_files`; it names the option, corpora.TextFiles.files.
  """
  return matching_files(corpus.files, f"{heldout.kind_of(corpus)}.files")


def check_text(files: Sequence[Path]) -> None:
  """Checks the beginnings of plain text files.

  Raises:
    CorpusError: one of the first files is not text, or any is a file of JSON lines.
  """
  for path in files:
    if looks_like_json_lines(path):
      raise CorpusError(
        f"{path} contains JSON lines, not plain text. Read the texts in them with"
        " gin/data/json_lines_bytes.gin (or json_lines_sentencepiece.gin) --gin.JSON_LINES=FILES,"
        " or rename the file to .txt to train on the JSON itself."
      )
  for path in files[:LOOKED_AT]:
    with opened_text(path):
      pass


def is_one_document(corpus: FileCorpus) -> bool:
  """Whether the corpus is a single file with a single document, without reading it."""
  files = files_of(corpus)
  return corpus.largest_document() is not None and sum(p.stat().st_size > 0 for p in files) < 2


def _holds_out_tail(corpus: FileCorpus) -> bool:
  if not hasattr(corpus, "files"):  # A stream: its documents are chosen by the hash alone.
    return False
  if is_one_document(corpus):
    return 0 < corpus.heldout_fraction < 1
  identity = repr(corpus) + describe_files(files_of(corpus))
  return heldout.needs_tail(
    identity, corpus.heldout_fraction, lambda: filter(heldout.text_size, corpus.undivided())
  )


def heldout_rule(corpus: FileCorpus) -> dict[str, str]:
  """Returns the entry of `describe` for the splits: empty if a hash decides."""
  if not _holds_out_tail(corpus):
    return {}
  # An earlier version chose the tail of several documents differently: the cache needs a new name.
  return {"heldout": "tail" if is_one_document(corpus) else "tail of text"}


def split_documents(corpus: FileCorpus, split: str) -> Iterator[bytes]:
  """Yields the documents, or parts of them, of 'train', 'heldout' or 'all'."""
  heldout.check_split(split)
  if split == "all" or not _holds_out_tail(corpus):
    fraction = corpus.heldout_fraction
    yield from (text for text in corpus.undivided() if in_split(text, split, fraction))
    return
  sizes = [heldout.text_size(text) for text in corpus.undivided()]
  if not any(sizes):
    yield from filter(lambda text: not text, corpus.undivided())  # Counted, as without text.
  else:
    tail = heldout.tail_of(sizes, corpus.heldout_fraction, corpus=corpus)
    yield from heldout.tail_split(corpus.undivided(), split, tail)


class DocumentFiles:
  """What corpora of documents in files have in common."""

  def describe(self: Any) -> dict[str, Any]:
    """Returns the options and a digest of the files' names, sizes and times."""
    return self.options() | {"files": describe_files(files_of(self))} | heldout_rule(self)

  def documents(self: Any, split: str) -> Iterator[bytes]:
    """Yields the documents of 'train', 'heldout' or 'all' in the order of the files.

    Raises:
      CorpusError: a file or a line in it cannot be read, or there is too little to hold some out.
    """
    return split_documents(self, split)

  def total_bytes(self: Any) -> int:
    """Returns about how many bytes of text the files have."""
    return sum(map(text_bytes, files_of(self)))
