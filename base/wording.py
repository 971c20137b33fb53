"""What stands in many lines that users read: numbers, and names that may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


def near(name: str, known: Iterable[str]) -> str:
  """The end of an error message: the known name nearest to `name`, or the known names if few."""
  known = sorted(set(known))
  lower = {other.lower(): other for other in known}
  # Of a path, the last part is compared as well: `tiny.gin` is near `sizes/tiny.gin`.
  last = {other.rpartition("/")[2].lower(): other for other in known if "/" in other}
  for names, wanted in ((lower, name), (last, name.rpartition("/")[2])):
    if close := difflib.get_close_matches(wanted.lower(), names, n=1, cutoff=0.6):
      return f"; did you mean {names[close[0]]}?"
  if not known:
    return ""
  if len(known) <= 16:
    return f"; there is {', '.join(known)}"
  return f"; there are {len(known)}, none of a similar name"
