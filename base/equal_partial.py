"""Partial calls that are equal where they do the same."""

from __future__ import annotations

import functools


class EqualPartial(functools.partial):
  """A `functools.partial` that equals another of the same function and arguments.

  A model's fields are such calls: models of equal configurations are then equal, and what is
  compiled for one serves the other.
  """

  def __eq__(self, other: object) -> bool:
    if not isinstance(other, EqualPartial):
      return NotImplemented
    mine, others = ((p.func, p.args, p.keywords) for p in (self, other))
    return mine == others

  def __hash__(self) -> int:
    # Not the values, which need not be hashable.
    return hash((self.func, len(self.args), frozenset(self.keywords)))
