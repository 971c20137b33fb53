"""How far a preparation has come, and a line that shows it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a preparation has come.

  Attributes:
    what: the name of what is prepared.
    documents: read so far.
    text_bytes: read so far.
    total_bytes: of the whole corpus; 0 if it is not known beforehand.
    seconds: since the start.
  """

  what: str
  documents: int
  text_bytes: int
  total_bytes: int
  seconds: float
