"""Checks that rows whose state is carried have the losses of one long row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import jax
import numpy as np

from contract.finding import Finding, compare_rows
from contract.subject import ROWS, Subject
from data.loader import batch_of_rows
from training import carried_state, losses
from training.time_chunks import Batch


def check(subject: Subject) -> Iterator[Finding]:
  """Compares the losses of packed rows in two halves, the state carried, with those of the rows.

  A model that keeps all tokens continues from a state with room for them, and must refuse to carry
  it without end.
  """
  model, params = subject.without_remainder()
  half = 2 * subject.window + 1
  whole = subject.batch(ROWS, 2 * half)
  expected = jax.jit(lambda params: losses.token_losses(model, params, cast(Batch, whole))[0])
  expected = np.asarray(expected(params))
  first, second = (
    {name: x[:, part] for name, x in whole.items()} for part in (slice(half), slice(half, None))
  )
  case = f"two rows of {half} tokens as one"
  try:
    state, run = carried_state.initial_state(model, ROWS), carried_state.losses_from
  except carried_state.CarryError as error:
    yield Finding(case="refuses to carry it without end", outcome="refused", says=str(error))
    state, run = model.initial_state(ROWS, 2 * half), losses.token_losses_from
  else:
    goes_on = (second["positions"][:, 0] > 0) & (second["segment_ids"][:, 0] > 0)
    second = _as_loaded(second, np.where(goes_on, first["targets"][:, -1], -1))
    first = _as_loaded(first, np.full(ROWS, -1))

  @jax.jit
  def halves(params, state, first, second):
    (before, _), state = run(state, model, params, first)
    (after, _), _ = run(state, model, params, second)
    return before, after

  found = np.concatenate(halves(params, state, first, second), axis=1)
  # A loss is a difference of two numbers as large as the logits, of order ten.
  allowed = subject.rounding(np.maximum(np.abs(expected), 10))
  yield compare_rows(case, found[..., None], expected[..., None], allowed)


def _as_loaded(row: dict[str, np.ndarray], before: np.ndarray) -> dict[str, np.ndarray]:
  """A part of a row as a loader makes it, with segments and positions that count from its start."""
  ids = row["segment_ids"]
  ids = np.where(ids > 0, ids - ids[:, :1] + 1, 0)
  return batch_of_rows(row["targets"], ids, bos_id=0, before=before)
