"""A corpus streamed by Hugging Face's `datasets`: from the hub, or from files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from base import remote_files
from base.file_paths import FilePath
from base.ranges import Share
from base.wording import type_in_words
from data.encoding import Text
from data.files import (
  CorpusError,
  NoFiles,
  describe_files,
  source,
  to_bytes,
  with_literal_folders,
)
from data.heldout import check_fraction, in_split
from data.parts import Part

_LOOKED_AT = 8
_SECONDS_TO_ANSWER = 10.0


@dataclasses.dataclass(frozen=True)
class HubDataset:
  """A data set as `datasets.load_dataset(..., streaming=True)` reads it; a row is a document.

  Nothing is downloaded as a whole. Held-out documents are chosen by a hash of the text alone.

  Attributes:
    path: its name on the hub, a local folder, or a format with `data_files`: 'parquet', 'json'.
    config: the name of its configuration, if it has several.
    part: its split.
    data_files: files or patterns to read in place of its own; local, or addresses.
    field: the column of text. Null is an empty document, which is left out and counted.
    revision: a commit, tag or branch of the hub; None is the newest.
    heldout_fraction: expected share of the documents that is held out.
  """

  path: str
  config: str | None = None
  part: str = "train"
  data_files: FilePath | Sequence[FilePath] | None = None
  field: str = "text"
  revision: str | None = None
  heldout_fraction: Share = 0.05

  name = "hub-dataset"

  def __post_init__(self):
    check_fraction(self.heldout_fraction)

  def options(self) -> dict[str, Any]:
    """Returns what `describe` says without a look at the files."""
    files = self.data_files
    return {
      "corpus": self.name,
      "path": self.path,
      "config": self.config,
      "part": self.part,
      "data_files": files if files is None or isinstance(files, str) else list(files),
      "field": self.field,
      "revision": self.revision,
      "heldout_fraction": self.heldout_fraction,
    }

  def describe(self) -> dict[str, Any]:
    """Returns the options and a digest of the files that it consists of.

    Raises:
      NoFiles: the hub cannot be reached, or there is no such data set.
    """
    return self.options() | {"files": describe_files(self._files())}

  def _files(self) -> list[Path]:
    files = _builder(self).config.data_files
    if not files or self.part not in files:
      known = ", ".join(map(str, files or ())) or "none"
      raise CorpusError(f"{self.path} has no split {self.part!r}, only {known}. Set part.")
    return _found(tuple(map(str, files[self.part])))

  def check(self) -> None:
    """Reads the first rows.

    Raises:
      CorpusError: they have no such column.
    """
    for number, _ in enumerate(self.undivided()):
      if number == _LOOKED_AT:
        break

  def total_bytes(self) -> int:
    """Returns the bytes of its files."""
    return sum(file.stat().st_size for file in self._files())

  def largest_document(self) -> int | None:
    """Returns None: unknown without reading all rows."""
    return None

  def undivided(self) -> Iterator[bytes]:
    """Yields the texts of all splits."""
    for part in self.parts(1):
      for text in self.texts(part):
        yield text.raw

  def documents(self, split: str) -> Iterator[bytes]:
    """Yields the documents of 'train', 'heldout' or 'all'."""
    yield from (text for text in self.undivided() if in_split(text, split, self.heldout_fraction))

  def parts(self, size: int) -> list[Part]:
    """Returns a part per shard of the stream: a file, as a rule."""
    with _told(self):
      count = _stream(self).num_shards
    each = self.total_bytes() // count
    return [Part(self.path, number, number + 1, each) for number in range(count)]

  def texts(self, part: Part) -> Iterator[Text]:
    """Yields the texts of a part."""
    with _told(self):
      stream = _stream(self)
      rows = iter(stream.shard(num_shards=stream.num_shards, index=part.start))
    number = 0
    while True:
      with _told(self):
        row = next(rows, None)
      if row is None:
        return
      yield Text(self._text(row, f"{self.path}, {part}, row {number}"))
      number += 1

  def _text(self, row: dict[str, Any], place: str) -> bytes:
    if self.field not in row:
      raise CorpusError(
        f"{place}: no column {self.field!r}, only {', '.join(map(repr, row))}. Set"
        " --gin.TEXT_COLUMN=..."
      )
    text = row[self.field]
    if text is not None and not isinstance(text, str):
      raise CorpusError(
        f"{place}: {self.field!r} is {type_in_words(text)}, not a string. Set another column:"
        " --gin.TEXT_COLUMN=..."
      )
    return to_bytes(text or "")


def _library() -> Any:
  try:
    import datasets
  except ImportError:
    raise CorpusError(
      "hub_corpora.HubDataset needs the library 'datasets': install the extra 'datasets'."
    ) from None
  datasets.disable_progress_bars()
  return datasets


@contextlib.contextmanager
def _told(corpus: HubDataset) -> Iterator[None]:
  """Turns the library's errors into one line."""
  try:
    yield
  except (CorpusError, remote_files.RemoteError):
    raise
  except Exception as error:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    names = {kind.__name__ for kind in type(error).__mro__}
    if "DatasetNotFoundError" in names or isinstance(error, FileNotFoundError):
      raise NoFiles(
        f"{corpus.path} is not found ({said}). Correct path or data_files, or log in (HF_TOKEN).",
        corpus.path,
      ) from None
    if isinstance(error, ConnectionError) or names & {"OfflineModeIsEnabled", "HTTPError"}:
      raise NoFiles(
        f"the hub does not answer for {corpus.path} ({said}). Check the network.", corpus.path
      ) from None
    raise CorpusError(f"{corpus.path} cannot be read ({said}). Correct the data set.") from None


def _builder(corpus: HubDataset) -> Any:
  options = corpus.options()
  with _told(corpus):
    return _built(json.dumps([options[n] for n in ("path", "config", "data_files", "revision")]))


@remote_files.until_forgotten
def _built(options: str) -> Any:
  path, config, files, revision = json.loads(options)
  if os.path.isdir(path):  # the library finds no name in "." or ".."
    path = os.path.abspath(path)
  if files is not None:
    named = [files] if isinstance(files, str) else files
    files = [file if remote_files.is_remote(file) else with_literal_folders(file) for file in named]
  elif not os.path.isdir(path):
    _require_answer(path)
  return _library().load_dataset_builder(path, config, data_files=files, revision=revision)


def _require_answer(path: str) -> None:
  """Asks the hub once: `datasets` repeats a request that nobody answers for half a minute.

  Raises:
    ConnectionError: there is no answer. Any answer, a refusal too, is left to `datasets`.
  """
  library = _library()
  if library.config.HF_HUB_OFFLINE:
    return
  import huggingface_hub

  try:
    huggingface_hub.HfApi().dataset_info(path, timeout=_SECONDS_TO_ANSWER)
  except Exception as error:
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"TransportError", "ConnectionError", "Timeout"}:  # of httpx, and of requests
      raise ConnectionError(str(error)) from None


@remote_files.until_forgotten
def _found(files: tuple[str, ...]) -> list[Path]:
  found = [source(file) for file in files]
  remote_files.at_once(lambda file: file.stat(), found)  # which a remote file remembers
  return found


def _stream(corpus: HubDataset) -> Any:
  found = _builder(corpus).as_streaming_dataset(split=corpus.part)
  known = found.features
  return found.select_columns([corpus.field]) if known and corpus.field in known else found
