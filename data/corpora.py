"""Where documents come from."""

from __future__ import annotations

from typing import Protocol


class Corpus(Protocol):
  """A source of documents."""
