"""Checks that a decode state continues a row as if the earlier tokens were part of the call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from contract.finding import Finding, compare_rows
from contract.subject import ROWS, Subject


def check(subject: Subject) -> Iterator[Finding]:
  """Compares teacher forcing with prefills of every class of length, chunks, and single steps."""
  tokens = subject.tokens(4)
  whole = subject.logits(tokens)
  allowed = subject.rounding(whole)
  window, length = subject.window, subject.length
  for prefill in sorted({1, 2, window - 1, window, window + 1, 3 * window + 1} - {0}):
    ids = np.ones((ROWS, prefill), np.int32)
    logits, state = subject.apply(
      subject.params, tokens[:, :prefill], segment_ids=ids, capacity=length
    )
    found = np.concatenate([logits, _steps(subject, tokens[:, prefill:], state)], axis=1)
    yield compare_rows(f"prefill of {prefill} tokens, then single steps", found, whole, allowed)

  last, _ = subject.apply(subject.params, tokens, last_only=True)
  yield compare_rows(
    "only the last token's logits", last, whole[:, -1:], allowed, first_token=length - 1
  )
  start = jax.jit(lambda: subject.model.initial_state(ROWS, length))()
  yield compare_rows(
    "single steps from the initial state", _steps(subject, tokens, start), whole, allowed
  )

  sizes = (2, 2 * window + 2, window - 1)
  # As above, to compile nothing anew.
  ids = np.ones((ROWS, sizes[0]), np.int32)
  logits, state = subject.apply(
    subject.params, tokens[:, : sizes[0]], segment_ids=ids, capacity=length
  )
  parts, begin = [logits], sizes[0]
  for size in sizes[1:]:
    chunk = tokens[:, begin : begin + size]
    logits, state = subject.apply(subject.params, chunk, state=state)
    parts.append(logits)
    begin += size
  found = np.concatenate([*parts, _steps(subject, tokens[:, begin:], state)], axis=1)
  yield compare_rows(
    f"prefill in chunks of {', '.join(map(str, sizes))}, then single steps", found, whole, allowed
  )
  yield _left_padded(subject, tokens, allowed)


def _left_padded(subject: Subject, tokens: np.ndarray, allowed: float) -> Finding:
  """Checks a batch of prompts that start at different tokens."""
  padding, prompt, length = subject.window - 2, 3 * subject.window + 1, subject.length
  ids = np.ones((ROWS, prompt), np.int32)
  ids[0, :padding] = 0
  logits, state = subject.apply(
    subject.params, tokens[:, :prompt], segment_ids=ids, capacity=length
  )
  found = np.concatenate([logits, _steps(subject, tokens[:, prompt:], state)], axis=1)
  rolled = np.roll(tokens, -padding, axis=1)
  own = np.broadcast_to(np.arange(length) < length - padding, (ROWS, length)).astype(np.int32)
  alone = subject.logits(rolled, own)[:1, : length - padding]
  return compare_rows(
    "left-padded prompt", found[:1, padding:], alone, allowed, first_token=padding
  )


def _steps(subject: Subject, tokens: np.ndarray, state: Any) -> np.ndarray:
  """Feeds tokens [2, T] one by one; returns logits [2, T, V]."""
  steps = []
  for t in range(tokens.shape[1]):
    logits, state = subject.apply(subject.params, tokens[:, t : t + 1], state=state)
    steps.append(logits)
  return np.concatenate(steps, axis=1)
