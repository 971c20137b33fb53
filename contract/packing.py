"""Checks that documents in a row are independent of each other and of padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from base.wording import plural
from contract.finding import Finding, compare_rows
from contract.subject import ROWS, Subject


def check(subject: Subject) -> Iterator[Finding]:
  """Compares logits of packed documents, including one of a single token, with those alone."""
  length, window = subject.length, subject.window
  tokens = subject.tokens(2)
  bounds = ((0, window - 3, window - 2, 2 * window + 5, length), (0, length - window + 2, length))
  ids = np.zeros((ROWS, length), np.int32)
  for row, ends in enumerate(bounds):
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
      ids[row, start:end] = number + 1
  packed = subject.logits(tokens, ids)
  allowed = subject.rounding(packed)
  for row, ends in enumerate(bounds):
    for start, end in itertools.pairwise(ends):
      # Alone in a row, followed by padding.
      alone = np.zeros_like(tokens)
      alone[:, : end - start] = tokens[row, start:end]
      own = np.broadcast_to(np.arange(length) < end - start, (ROWS, length)).astype(np.int32)
      expected = subject.logits(alone, own)[:1, : end - start]
      yield compare_rows(
        f"document of {plural(end - start, 'token')} from token {start} of row {row}",
        packed[row : row + 1, start:end],
        expected,
        allowed,
        first_token=start,
        row=row,
      )
  ids = np.broadcast_to((np.arange(length) < 2 * window).astype(np.int32), (ROWS, length))
  padded = subject.logits(tokens, ids)[:, : 2 * window]
  whole = subject.logits(tokens)[:, : 2 * window]
  yield compare_rows("padding after a document", padded, whole, allowed)
