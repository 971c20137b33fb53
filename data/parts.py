"""Cuts files into parts that several processes read; the cuts depend on the files alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from data.encoding import Text
from data.files import compression, mapped, opened_text, source, text_bytes

# How far from its place a cut looks for the end of a line.
_NEAR = 2**20


# The end of a file whose size is unknown.
_WHOLE = 2**62


@dataclasses.dataclass(frozen=True)
class Part:
  """A range of a file, and the documents that begin in it.

  Attributes:
    file: its path.
    start, stop: the range: bytes, or rows of a table.
    size: about how many bytes of text it has.
    pieces: above 1 if the part is one of so many pieces of a single document.
    last: whether the piece is the document's last.
  """

  file: str
  start: int
  stop: int
  size: int
  pieces: int = 1
  last: bool = True

  def __str__(self) -> str:
    if self.stop == _WHOLE:
      return self.file
    return f"{self.file}, {self.start:,} to {self.stop:,}"


class Parted(Protocol):
  """A corpus whose parts can be read in any order."""

  def parts(self, size: int) -> list[Part]:
    """Returns parts of about `size` bytes, in the order of the documents."""
    ...

  def texts(self, part: Part) -> Iterator[Text]:
    """Yields the documents of a part, of all splits."""
    ...


def of_file(path: Path, size: int) -> list[Part]:
  """Cuts a file of many documents at any bytes; a compressed file is one part."""
  if compression(path):
    return [Part(str(path), 0, _WHOLE, text_bytes(path))]
  total = path.stat().st_size
  count = max(1, round(total / size))
  cuts = [total * n // count for n in range(count + 1)]
  return [Part(str(path), a, b, b - a) for a, b in itertools.pairwise(cuts) if b > a or count == 1]


def of_large_document(path: Path, size: int) -> list[Part]:
  """Cuts a file that is one document after ends of lines, if it is larger than `size`."""
  total = path.stat().st_size
  if total <= size or compression(path):
    return [Part(str(path), 0, total, total)]
  with opened_text(path) as file:
    return pieces_between(path, file.tell(), total, size)


def pieces_between(path: Path, start: int, stop: int, size: int) -> list[Part]:
  """Cuts a range of a file after ends of lines; its text is one document."""
  count = max(1, round((stop - start) / size))
  cuts = [start]
  with mapped(path) as (text, _):
    for number in range(1, count):
      near = start + (stop - start) * number // count
      cut = text.find(b"\n", near, min(near + _NEAR, stop)) + 1
      if not cut:
        cut = near
        while cut > cuts[-1] and text[cut] & 0xC0 == 0x80:  # Within a character.
          cut -= 1
      if cuts[-1] < cut < stop:
        cuts.append(cut)
  cuts.append(stop)
  # At least 2: a single piece would be read as a whole file.
  number = max(2, len(cuts) - 1)
  return [Part(str(path), a, b, b - a, number, b == stop) for a, b in itertools.pairwise(cuts)]


def piece(part: Part) -> Text:
  """Reads a piece of a document."""
  with source(part.file).open("rb") as file:
    file.seek(part.start)
    return Text(file.read(part.stop - part.start), part.last)


def document_at(text: Any, separator: bytes, start: int, first: int) -> int:
  """Returns where the first document begins that begins at byte `first` or later.

  Separators are counted from the left, also where they overlap, as line ends in a row do: so it
  goes back to one that overlaps none before it.
  """
  size = len(separator)
  found = text.find(separator, max(start, first - size))
  while found >= 0:
    before = text.rfind(separator, max(start, found - size + 1), found + size - 1)
    if before < 0:
      break
    found = before
  while 0 <= found < first - size:
    found = text.find(separator, found + size)
  return found + size if found >= 0 else len(text)
