"""Corpora of tables with a column of text: Parquet files, and data sets of Hugging Face on disk."""

from __future__ import annotations

import dataclasses
import functools
import glob
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from base import remote_files
from base.file_paths import FilePath
from base.ranges import Share
from base.wording import type_in_words
from data.encoding import Text
from data.file_corpora import DocumentFiles, files_of
from data.files import CorpusError, describe_files, source, to_bytes
from data.heldout import check_fraction
from data.parts import Part

_ROWS_AT_ONCE = 1024
_STATE_FILE = "state.json"


def _pyarrow() -> Any:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError:
    raise CorpusError(
      "tables are read with pyarrow, which is not installed. Install the extra 'tables'."
    ) from None
  return pyarrow


def _column(values: Any, field: str, path: Path, first: int) -> Iterator[bytes]:
  """Yields the texts of a column; null is an empty document."""
  for number, text in enumerate(values.to_pylist(), start=first):
    if text is None:
      yield b""
    elif isinstance(text, str):
      yield to_bytes(text)
    else:
      found = type_in_words(text)
      raise CorpusError(
        f"{path}, row {number}: {field!r} is {found}, not a string. Set another column:"
        " --gin.TEXT_COLUMN=..."
      )


def _require_field(names: Sequence[str], field: str, path: Path) -> None:
  if field not in names:
    shown = ", ".join(names[:8])
    raise CorpusError(f"{path}: no column {field!r}, only {shown}. Set --gin.TEXT_COLUMN=...")


class _Table(DocumentFiles):
  """What both kinds of tables have in common; see `DocumentFiles`."""

  field: str
  heldout_fraction: Share

  def undivided(self: Any) -> Iterator[bytes]:
    """Yields the texts of all splits."""
    for part in self.parts(1):
      for text in self.texts(part):
        yield text.raw

  def total_bytes(self: Any) -> int:
    """Returns the bytes of the column, as far as the files tell."""
    return sum(part.size for part in self.parts(1))

  def largest_document(self) -> int | None:
    """Returns None: unknown without reading all rows."""
    return None


@dataclasses.dataclass(frozen=True)
class Parquet(_Table):
  """Parquet files with a column of text; a row is a document, read by row groups.

  Attributes:
    files: a path or glob pattern (`**` crosses folders), or several.
    field: the column. Null is an empty document, which is left out and counted.
    heldout_fraction: expected share of the documents that is held out; see `corpora.JsonLines`.
  """

  files: FilePath | Sequence[FilePath]
  field: str = "text"
  heldout_fraction: Share = 0.05

  name = "parquet"

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
    """Opens the first file.

    Raises:
      CorpusError: it is not a Parquet file, or has no such column.
    """
    self._opened(files_of(self)[0])

  def _opened(self, path: Path) -> Any:
    arrow = _pyarrow()
    try:
      # Of a remote file, just the column's ranges of each row group.
      remote = isinstance(path, remote_files.RemoteFile)
      opened = cast(Any, path).open(read_ahead=False) if remote else path
      file = arrow.parquet.ParquetFile(opened)
    except (arrow.ArrowException, OSError) as error:
      said = " ".join(str(error).split())[:150]
      raise CorpusError(f"{path} is not a readable Parquet file ({said}). Replace it.") from None
    _require_field(file.schema_arrow.names, self.field, path)
    return file

  def parts(self, size: int) -> list[Part]:
    """Returns a part per row group."""
    return [
      part for found in remote_files.at_once(self._parts_of, files_of(self)) for part in found
    ]

  def _parts_of(self, path: Path) -> list[Part]:
    one = dataclasses.replace(self, files=str(path))
    sizes = _group_sizes(one, path, describe_files([path]))
    return [Part(str(path), n, n + 1, total) for n, total in enumerate(sizes)]

  def undivided(self) -> Iterator[bytes]:
    """Yields the texts of all splits; opens a file when its turn comes."""
    for path in files_of(self):
      for part in self._parts_of(path):
        for text in self.texts(part):
          yield text.raw

  def texts(self, part: Part) -> Iterator[Text]:
    """Yields the texts of a part's row groups."""
    path = source(part.file)
    arrow, file = _pyarrow(), self._opened(path)
    groups = range(part.start, part.stop)
    row = sum(file.metadata.row_group(n).num_rows for n in range(part.start))
    try:
      for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=[self.field]):
        yield from map(Text, _column(batch.column(0), self.field, path, row))
        row += batch.num_rows
    except (arrow.ArrowException, OSError) as error:
      said = " ".join(str(error).split())[:150]
      raise CorpusError(f"{path}, after row {row}: {said}. Replace the file.") from None


# The footers of thousands of files are read once in a process.
@functools.lru_cache(2**16)
def _group_sizes(corpus: Parquet, path: Path, version: str) -> tuple[int, ...]:
  """Returns the bytes of the column in each row group of a file of this version."""
  metadata = corpus._opened(path).metadata
  found = []
  for number in range(metadata.num_row_groups):
    group = metadata.row_group(number)
    columns = (group.column(n) for n in range(group.num_columns))
    own = (c for c in columns if c.path_in_schema.split(".")[0] == corpus.field)
    found.append(sum(column.total_uncompressed_size for column in own))
  return tuple(found)


@dataclasses.dataclass(frozen=True)
class SavedDataset(_Table):
  """A folder that `save_to_disk` of Hugging Face's `datasets` wrote; a row is a document.

  Attributes:
    folder: the folder of one split, with its state.json.
    field: the column. Null is an empty document, which is left out and counted.
    heldout_fraction: expected share of the documents that is held out; see `corpora.JsonLines`.
  """

  folder: FilePath
  field: str = "text"
  heldout_fraction: Share = 0.05

  name = "saved-dataset"

  def __post_init__(self):
    check_fraction(self.heldout_fraction)

  @property
  def files(self) -> list[str]:
    """The Arrow files of the data set, in order.

    Raises:
      CorpusError: the folder is not one of `save_to_disk`.
    """
    folder = source(self.folder)
    try:
      state = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
      names = [os.fspath(file["filename"]) for file in state["_data_files"]]
      moved = state.get("_indices_data_files")
    except (OSError, ValueError, KeyError, TypeError):
      inner = sorted(
        os.path.dirname(p) for p in glob.glob(f"{glob.escape(str(folder))}/*/state.json")
      )
      hint = f" Give one of its splits: {', '.join(inner)}." if inner else ""
      raise CorpusError(
        f"{folder} has no readable {_STATE_FILE}: it is not the folder of a data set that"
        f" save_to_disk wrote.{hint or ' Correct the path.'}"
      ) from None
    if moved:
      raise CorpusError(f"{folder} is a selection of rows. Save dataset.flatten_indices() instead.")
    for name in names:
      if os.path.basename(name) != name:
        raise CorpusError(f"{folder}/{_STATE_FILE} names {name!r}, which is not in the folder.")
    return [str(folder / name) for name in names]

  def options(self) -> dict[str, Any]:
    """Returns what `describe` says without a look at the files."""
    return {
      "corpus": self.name,
      "folder": self.folder,
      "field": self.field,
      "heldout_fraction": self.heldout_fraction,
    }

  def parts(self, size: int) -> list[Part]:
    """Returns a part per file: `save_to_disk` writes files of at most 500 MB."""
    sizes = [(str(path), path.stat().st_size) for path in files_of(self)]
    return [Part(path, 0, total, total) for path, total in sizes]

  def texts(self, part: Part) -> Iterator[Text]:
    """Yields the texts of a file."""
    arrow, path, row = _pyarrow(), source(part.file), 0
    remote = isinstance(path, remote_files.RemoteFile)
    try:
      opened = arrow.PythonFile(path.open()) if remote else arrow.memory_map(part.file)
      with opened as stream, arrow.ipc.open_stream(stream) as batches:
        _require_field(batches.schema.names, self.field, path)
        for batch in batches:
          for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            column = batch.column(self.field).slice(start, _ROWS_AT_ONCE)
            yield from map(Text, _column(column, self.field, path, row))
            row += len(column)
    except (arrow.ArrowException, OSError) as error:
      said = " ".join(str(error).split())[:150]
      raise CorpusError(f"{path}, after row {row}: {said}. Replace the file.") from None
