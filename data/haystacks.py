"""Haystacks: the text in which tasks of long texts hide what they ask for.

RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3) has two: a few sentences that are repeated,
and real text, which it cuts into sentences.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from base.file_paths import FilePath
from data import corpora
from data.corpora import CorpusError
from data.look import segments

# The sentences of Mohtashami and Jaggi 2023 (arXiv 2305.16300, section 4.2).
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
# A unit of text has at most so many words: code and lists have few sentences.
_MOST_WORDS = 40
# So many characters of a text are enough: a text of more tokens repeats them.
_MOST_CHARACTERS = 2**23
_HELP = "Name plain text files: --gin.HAYSTACK_FILES='my_texts/*.txt'."


class Haystack(Protocol):
  """A text that is cut into units, between which something can be hidden.

  Attributes:
    between: what stands between two units.
  """

  between: str

  def units(self, rng: np.random.Generator, count: int) -> list[str]:
    """Draws `count` units, in the order of the text."""
    ...

  def describe(self) -> dict[str, Any]:
    """Returns what determines the units, as JSON values."""
    ...


@dataclasses.dataclass(frozen=True)
class Noise:
  """The same five sentences again and again."""

  between = "\n"

  def units(self, rng: np.random.Generator, count: int) -> list[str]:
    """Returns `count` times the sentences."""
    return [NOISE] * count

  def describe(self) -> dict[str, Any]:
    """Returns the kind."""
    return {"haystack": "noise"}


@dataclasses.dataclass(frozen=True)
class RowText:
  """The text of a data set's rows, for corpora whose documents are not read in Python.

  Attributes:
    dataset: a `data.dataset.TextDataset`.
  """

  dataset: Any

  @property
  def name(self) -> str:
    """The corpus's name."""
    return self.dataset.corpus.name

  def describe(self) -> dict[str, Any]:
    """Returns what determines the rows' text."""
    return self.dataset.source()

  def documents(self, split: str) -> Iterator[bytes]:
    """Yields the text of each row; `split` is the data set's."""
    rows = self.dataset.rows()
    for number in range(len(rows)):
      parts = segments(rows.tokens[number], rows.segment_ids[number])
      yield "\n".join(map(rows.tokenizer.decode, parts)).encode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
  """Sentences of real text from a random one on; the end continues at the beginning.

  Attributes:
    files: plain text files, patterns of paths; None is the held-out text of the run that is scored.
    corpus, split: the text, if it is not of files.
  """

  files: FilePath | Sequence[FilePath] | None = None
  corpus: Any = None
  split: str = "heldout"

  between = " "

  def of_dataset(self, dataset: Any) -> Text:
    """Returns the haystack with the text of a data set, unless it has a text of its own.

    Of a mixture it is the text of the first component.

    Raises:
      CorpusError: the data set has no text that can be read as documents.
    """
    if self.files is not None or self.corpus is not None:
      return self
    part = next(iter(getattr(dataset, "components", [dataset])))
    corpus = getattr(part, "corpus", None)
    if hasattr(corpus, "documents"):
      return dataclasses.replace(self, corpus=corpus, split=part.split)
    if corpus is not None and not hasattr(corpus, "drawn"):
      return dataclasses.replace(self, corpus=RowText(part), split=part.split)
    raise CorpusError(f"the held-out data of the run is no text that can hide anything. {_HELP}")

  def _source(self) -> tuple[Any, str]:
    if self.files is not None:
      return corpora.TextFiles(self.files), "all"
    if self.corpus is None:
      raise CorpusError(f"there is no text to hide anything in. {_HELP}")
    return self.corpus, self.split

  def units(self, rng: np.random.Generator, count: int) -> list[str]:
    """Draws a place, and returns `count` sentences from it on.

    Raises:
      CorpusError: there is no text.
    """
    corpus, split = self._source()
    found = _sentences(json.dumps(self.describe(), sort_keys=True), corpus, split)
    first = int(rng.integers(len(found)))
    return [found[(first + n) % len(found)] for n in range(count)]

  def describe(self) -> dict[str, Any]:
    """Returns the text and its split."""
    corpus, split = self._source()
    return {"haystack": "text", "text": corpus.describe(), "split": split}


# Sentences by description of their text, which is read once.
_read: dict[str, list[str]] = {}


def _sentences(identity: str, corpus: Any, split: str) -> list[str]:
  if identity not in _read:
    found: list[str] = []
    size = 0
    for document in corpus.documents(split):
      text = bytes(document).decode("utf-8", errors="replace")
      found += sentences(text)
      size += len(text)
      if size > _MOST_CHARACTERS:
        break
    if not found:
      raise CorpusError(f"{corpus.name} ({split}) has no text to hide anything in. {_HELP}")
    _read[identity] = found
  return _read[identity]


def sentences(text: str) -> list[str]:
  """Cuts a text after each '.', '!' or '?', and after 40 words; blanks become single spaces."""
  found = []
  for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
    words = sentence.split(" ")
    for start in range(0, len(words), _MOST_WORDS):
      found.append(" ".join(words[start : start + _MOST_WORDS]))
  return [sentence for sentence in found if sentence]


def with_text_of(task: Any, dataset: Any) -> Any:
  """Returns a task whose haystack is the text of a data set where it names no files of its own."""
  tasks = getattr(task, "tasks", None)
  if tasks is not None:
    return dataclasses.replace(task, tasks=tuple(with_text_of(one, dataset) for one in tasks))
  haystack = getattr(task, "haystack", None)
  if isinstance(haystack, Text):
    return dataclasses.replace(task, haystack=haystack.of_dataset(dataset))
  return task
