"""Findings of checks, and comparisons of arrays that report the place of a difference."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np

Outcome = Literal["passed", "failed", "refused", "not run"]
ROUNDING = 2.0**-24  # relative, of float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """The result of a check on one case.

  Attributes:
    case: the case, such as 'prefill of 7 tokens'.
    outcome: 'refused' is a declared refusal that was made; for 'not run', `says` has the reason.
    difference: the largest difference; None if it has no size.
    allowed: the largest allowed difference.
    where: the first position with a larger difference: 'token 20 of row 1, ...' or the path of a
      parameter; '' if there is none.
    says: a further remark in one sentence.
  """

  case: str
  outcome: Outcome
  difference: float | None = None
  allowed: float | None = None
  where: str = ""
  says: str = ""

  @property
  def failed(self) -> bool:
    """Whether the contract is broken in this case."""
    return self.outcome == "failed"


def stated(case: str, holds: bool, says: str, where: str = "") -> Finding:
  """Makes a finding without a numeric error; `says` is always printed."""
  return Finding(case=case, outcome="passed" if holds else "failed", says=says, where=where)


def compare_rows(
  case: str, found: Any, expected: Any, allowed: float, *, first_token: int = 0, row: int = 0
) -> Finding:
  """Compares logits [B, T, V].

  Args:
    case: see `Finding`.
    found, expected: the logits.
    allowed: largest absolute difference.
    first_token, row: the position of [0, 0] in the checked rows.

  Returns:
    the finding, with the earliest token that differs. NaN differs from everything.
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

  The difference of an array is the norm of the difference over the expected norm. For an array that
  is almost zero it is relative to a hundredth of its share of the whole tree's norm.

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
  """Makes the finding for differences at named places, with the first that is too large."""
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
  """Returns the Euclidean norm of all elements."""
  return float(np.linalg.norm(np.asarray(x, np.float64).reshape(-1)))


def path_of(path: Sequence[Any]) -> str:
  """Formats a path in a tree, joined by '/'."""
  return "/".join(
    str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
  )
