"""How numbers stand in what users read."""

from __future__ import annotations


def plural(count: int, noun: str, several: str | None = None) -> str:
  """The count with its noun: `1 step`, `2,000 steps`.

  `several` is the plural if it has no plain s.
  """
  return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def one_line(text: str) -> str:
  """The text with every character escaped that may end a line: what stands in a comment must not
  leave it.
  """
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
