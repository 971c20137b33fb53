"""What a check finds, and how two arrays are compared so that a difference has a place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np

Outcome = Literal["passed", "failed", "refused", "not run"]
ROUNDING = 2.0**-24  # of float32, relative


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """One line of the contract, held or broken.

  Attributes:
    case: what was compared, such as 'prefill of 7 tokens'.
    outcome: 'refused' is a refusal that the model declares and makes; 'not run' says in `says` why.
    difference: the size of the largest difference; None where sizes do not apply.
    allowed: the largest that would have passed.
    where: the first position that differs by more: of a row 'token 20 of row 1, ...', of parameters
      a path. Empty if none does.
    says: what else there is to say, in one sentence.
  """

  case: str
  outcome: Outcome
  difference: float | None = None
  allowed: float | None = None
  where: str = ""
  says: str = ""

  @property
  def failed(self) -> bool:
    """Whether the contract is broken here."""
    return self.outcome == "failed"


def stated(case: str, holds: bool, says: str, where: str = "") -> Finding:
  """A finding without sizes; `says` is told either way."""
  return Finding(case=case, outcome="passed" if holds else "failed", says=says, where=where)


def compare_rows(
  case: str, found: Any, expected: Any, allowed: float, *, first_token: int = 0, row: int = 0
) -> Finding:
  """Compares logits [B, T, V].

  Args:
    case: see `Finding`.
    found, expected: the logits.
    allowed: largest absolute difference.
    first_token, row: the position of [0, 0] in the row that is spoken of.

  Returns:
    the finding; of all positions that differ the earliest token's is named. NaN differs from all.
  """
  found, expected = (np.asarray(x, np.float64) for x in (found, expected))
  if found.shape != expected.shape:
    return Finding(
      case=case, outcome="failed", says=f"shape {found.shape} instead of {expected.shape}"
    )
  differences = np.abs(found - expected)
  differences[np.isnan(differences)] = math.inf
  wrong = np.argwhere(differences > allowed)
  where = ""
  if len(wrong):
    b, t, v = min(wrong.tolist(), key=lambda place: (place[1], place[0], place[2]))
    where = f"token {t + first_token} of row {b + row}, logit {v}"
  return Finding(
    case=case,
    outcome="failed" if where else "passed",
    difference=float(differences.max(initial=0.0)),
    allowed=allowed,
    where=where,
  )


def compare_trees(case: str, found: Any, expected: Any, allowed: float) -> Finding:
  """Compares gradients or parameters, array by array.

  The difference of an array is the norm of the difference over the norm of what was expected; of an
  array that is almost zero, over a hundredth of what its share of the whole tree's norm would be.

  Args:
    case: see `Finding`.
    found, expected: trees of the same structure.
    allowed: largest relative difference.
  """
  leaves = jax.tree_util.tree_leaves_with_path(expected)
  pairs = [
    (path_of(path), np.asarray(a, np.float64), np.asarray(b, np.float64))
    for (path, b), a in zip(leaves, jax.tree.leaves(found), strict=True)
  ]
  size = sum(b.size for _, _, b in pairs)
  typical = math.sqrt(sum(float(np.sum(b * b)) for _, _, b in pairs) / size)
  differences = {
    path: norm(a - b) / max(norm(b), 0.01 * typical * math.sqrt(b.size), np.finfo(float).tiny)
    for path, a, b in pairs
  }
  return largest(case, differences.items(), allowed)


def largest(case: str, differences: Iterable[tuple[str, float]], allowed: float) -> Finding:
  """The finding for differences at named places: the first that is too large is named."""
  named = [(place, math.inf if math.isnan(size) else size) for place, size in differences]
  where = next((place for place, size in named if size > allowed), "")
  return Finding(
    case=case,
    outcome="failed" if where else "passed",
    difference=max((size for _, size in named), default=0.0),
    allowed=allowed,
    where=where,
  )


def norm(x: Any) -> float:
  """The Euclidean norm of all elements."""
  return float(np.linalg.norm(np.asarray(x, np.float64).reshape(-1)))


def path_of(path: Sequence[Any]) -> str:
  """A path in a tree, joined by '/'."""
  return "/".join(
    str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
  )
