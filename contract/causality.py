"""Checks that logits do not depend on later tokens, and do depend on earlier ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from contract.finding import Finding, compare_rows, stated
from contract.subject import Subject


def check(subject: Subject) -> Iterator[Finding]:
  """Changes one token at a time: earlier logits must not change, later ones must."""
  tokens = subject.tokens(1)
  before = subject.logits(tokens)
  allowed = subject.rounding(before)
  for t in (1, subject.window, subject.length - 2):
    changed = tokens.copy()
    changed[:, t] = (tokens[:, t] + 1) % subject.model.vocab_size
    after = subject.logits(changed)
    yield compare_rows(
      f"token {t} changes no logit before it", after[:, :t], before[:, :t], allowed
    )
    moved = float(np.abs(after[:, t + 1] - before[:, t + 1]).max())
    yield stated(
      f"token {t} changes the next logits",
      moved > 10 * allowed,
      f"they change by {moved:.1e}, rounding by {allowed:.1e}",
      "" if moved > 10 * allowed else f"token {t + 1}",
    )
