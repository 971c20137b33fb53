"""Progress of a preparation, and the line that shows it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from typing import TextIO

from base.wording import plural

_BAR_WIDTH = 24
_SECONDS_BETWEEN_LINES = 10.0


@dataclasses.dataclass(frozen=True)
class PreparationProgress:
  """Progress of a preparation.

  Attributes:
    what: name of the prepared dataset.
    documents: documents read so far.
    empty_documents: documents left out because they are empty.
    invalid_utf8_documents: documents with invalid UTF-8.
    text_bytes: bytes read so far.
    total_bytes: approximate bytes of the corpus; 0 if unknown.
    seconds: seconds since the start.
    waiting: whether another process is preparing the same dataset.
    reading: whether the process that prepares has begun to read the text.
    elsewhere: whether it has given the text to jobs of a cluster.
    finished: whether this is the last event.
  """

  what: str
  documents: int = 0
  empty_documents: int = 0
  invalid_utf8_documents: int = 0
  text_bytes: int = 0
  total_bytes: int = 0
  seconds: float = 0.0
  waiting: bool = False
  reading: bool = False
  elsewhere: bool = False
  finished: bool = False

  def line(self) -> str:
    """Formats one line: a bar if the total is known, the counts, the time."""
    if self.waiting:
      return f"preparing {self.what}: waiting for the process that does, {self.seconds:.0f} s"
    if not self.documents and not self.finished:
      doing = "reading the text" if self.reading else "starting the process that reads the text"
      if self.elsewhere:
        doing = "waiting for the first job to read the text"
      return f"preparing {self.what}: {doing}, {self.seconds:.0f} s"
    share = 1.0 if self.finished else min(self.text_bytes / (self.total_bytes or 1), 1.0)
    bar = ""
    if self.total_bytes or self.finished:
      full = int(share * _BAR_WIDTH)
      bar = "[" + "#" * full + "." * (_BAR_WIDTH - full) + f"] {share:4.0%}  "
    size = _size(self.text_bytes)
    counted = f"{plural(self.documents, 'document')}, {size}, {self.seconds:.0f} s"
    line = f"preparing {self.what}: {bar}{counted}"
    return line + (self._notes() if self.finished else "")

  def _notes(self) -> str:
    notes = []
    if self.empty_documents:
      notes.append(f"{self.empty_documents} empty, left out")
    if self.invalid_utf8_documents:
      notes.append(f"{self.invalid_utf8_documents} with invalid UTF-8")
    return f" ({'; '.join(notes)})" if notes else ""


def _size(count: int) -> str:
  """Formats a number of bytes as kB or MB."""
  return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


class ProgressBar:
  """Shows progress on one line of a terminal, or as a line every ten seconds elsewhere."""

  def __init__(self, stream: TextIO | None = None):
    """Writes to `stream`, by default stderr."""
    self._stream = stream or sys.stderr
    self._last_line = -_SECONDS_BETWEEN_LINES
    self._width = 0

  def __call__(self, progress: PreparationProgress) -> None:
    """Shows `progress`."""
    # A closed terminal or a full disk must not end the preparation.
    with contextlib.suppress(OSError):
      self._show(progress)

  def _show(self, progress: PreparationProgress) -> None:
    line = progress.line()
    if self._stream.isatty():
      # Blanks overwrite the rest of a longer line.
      self._stream.write("\r" + line.ljust(self._width) + ("\n" if progress.finished else ""))
      self._width = len(line)
    elif progress.finished or time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
      self._stream.write(line + "\n")
      self._last_line = time.monotonic()
    self._stream.flush()
