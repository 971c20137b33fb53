"""Which collectives a compiled program holds."""

from __future__ import annotations

import re
from typing import NamedTuple

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_OPERATION = re.compile(rf"= (?P<result>.*?) (?P<kind>{'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d+|pred)\[(?P<sizes>[\d,]*)\]")


class Collective(NamedTuple):
  """One collective operation; inside a loop it runs once per iteration.

  Attributes:
    kind: such as 'all-reduce'.
    arrays: (type, shape) of each array of its result.
  """

  kind: str
  arrays: tuple[tuple[str, tuple[int, ...]], ...]


def collectives(program: str) -> list[Collective]:
  """The collectives in the text of a compiled program (`compiled.as_text()`), in its order."""
  found = []
  for line in program.splitlines():
    if match := _OPERATION.search(line):
      arrays = tuple(
        (array["dtype"], tuple(int(size) for size in array["sizes"].split(",") if size))
        for array in _ARRAY.finditer(match["result"])
      )
      found.append(Collective(match["kind"], arrays))
  return found
