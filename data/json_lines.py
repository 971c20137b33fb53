"""Reads files with one JSON object per line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from base.wording import type_in_words
from data.files import (
  SAMPLE,
  CorpusError,
  opened_text,
  shortened,
  unpacked,
  without_packing,
)


def json_lines(files: Sequence[Path]) -> Iterator[tuple[dict[str, Any], Any]]:
  """Yields the objects of files with one JSON object per line, and their places ('file:line').

  Raises:
    CorpusError: a line is neither blank nor a JSON object.
  """
  for path in files:
    yield from json_lines_in(path)


class LinePlace:
  """A line of a file, shown as 'file:number'; counted only when it is shown."""

  def __init__(self, path: Path, offset: int):
    """Takes the byte at which the line starts."""
    self._path = path
    self._offset = offset

  def __str__(self) -> str:
    number, left = 1, self._offset
    with unpacked(self._path) as file:
      while left and (block := file.read(min(left, SAMPLE))):
        number += block.count(b"\n")
        left -= len(block)
    return f"{self._path}:{number}"

  def __repr__(self) -> str:
    return str(self)


def json_lines_in(
  path: Path, start: int = 0, stop: int | None = None
) -> Iterator[tuple[dict[str, Any], Any]]:
  """Yields the objects of the lines that begin in a range of a file's bytes, and their places.

  Raises:
    CorpusError: a line is neither blank nor a JSON object.
  """
  with opened_text(path) as file:
    if start > file.tell():
      # The line that contains the byte before belongs to the range before.
      file.seek(start - 1)
      file.readline()
    offset = file.tell()  # Of an unpacked text, too.
    while (stop is None or offset < stop) and (line := file.readline()):
      if not line.isspace():
        place = LinePlace(path, offset)
        yield _json_object(line, place), place
      offset += len(line)


def looks_like_json_lines(path: Path) -> bool:
  """Whether a file has an ending of JSON lines, and its first line is a JSON object."""
  if not without_packing(path.name).endswith((".jsonl", ".ndjson")):
    return False
  with contextlib.suppress(CorpusError), opened_text(path) as file:
    _json_object(file.readline(SAMPLE), str(path))
    return True
  return False


def _json_object(line: bytes, place: object) -> dict[str, Any]:
  try:
    # Bytes that are not UTF-8 pass as surrogates, to be replaced and counted later.
    value = json.loads(line.decode("utf-8", errors="surrogateescape"))
  except RecursionError:
    raise CorpusError(f"{place}: nested too deep to be read. Correct or remove the line.") from None
  except ValueError as error:
    raise CorpusError(
      f"{place}: not a JSON object ({error}). Correct or remove the line."
    ) from None
  if not isinstance(value, dict):
    raise CorpusError(f"{place}: {type_in_words(value)}, not a JSON object. Correct the line.")
  return value


def keys_of(values: dict[str, Any]) -> str:
  """Formats the keys of a line for a message."""
  keys = [shortened(key, 30) for key in values]
  return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
