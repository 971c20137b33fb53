"""Wording of messages: counts, and suggestions of similar names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def plural(count: int, noun: str, several: str | None = None) -> str:
  """Formats a count with its noun: `1 step`, `2,000 steps`.

  `several` is an irregular plural.
  """
  return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def percent_above(share: float, most: float) -> str:
  """Formats a share that exceeds a limit with as many digits as show that it does."""
  enough = (d for d in range(6) if float(f"{share:.{d}%}"[:-1]) > 100 * most)
  return f"{share:.{next(enough, 6)}%}"


def type_in_words(value: object) -> str:
  """Names what a value of JSON or of a table is, with its article."""
  names: list[tuple[type | tuple[type, ...], str]] = [
    (type(None), "null"),
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "a string"),
    ((list, tuple), "a list"),
    (dict, "an object"),
    (bytes, "a value of bytes"),
  ]
  other = f"a value of type {type(value).__name__}"
  return next((name for kind, name in names if isinstance(value, kind)), other)


def one_line(text: str) -> str:
  """Escapes every character that may end a line, so that text stays in a comment."""
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def near(name: str, known: Iterable[str]) -> str:
  """Suggests the known name nearest to `name`, or lists a few, as the end of an error message."""
  known = sorted(set(known))
  lower = {other.lower(): other for other in known}
  # Also compares the last part of paths: `tiny.gin` is near `sizes/tiny.gin`.
  last = {other.rpartition("/")[2].lower(): other for other in known if "/" in other}
  for names, wanted in ((lower, name), (last, name.rpartition("/")[2])):
    if close := difflib.get_close_matches(wanted.lower(), names, n=1, cutoff=0.6):
      return f"; did you mean {names[close[0]]}?"
  if not known:
    return ""
  if len(known) <= 16:
    return f"; choose from {', '.join(known)}"
  return f"; none of {len(known)} known names is similar"
