"""Checks that rows whose state is carried have the losses of one long row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, cast

import jax
import numpy as np

from contract import sharding
from contract.finding import Finding, compare_rows
from contract.subject import ROWS, Subject
from data.loader import batch_of_rows
from models.accounting import list_parameters
from models.language_model import LanguageModel
from parallel.mesh import AXES, MeshSpec
from parallel.sharding_plan import Parallelism
from training import carried_state, losses
from training.time_chunks import Batch


def check(subject: Subject) -> Iterator[Finding]:
  """Compares the losses of packed rows in two halves, the state carried, with those of the rows.

  The halves are run on a mesh, whose devices share rows, tokens and channels of the state. A model
  that keeps all tokens continues from a state with room for them, and must refuse to carry it
  without end.
  """
  model, params = subject.without_remainder()
  half = 2 * subject.window
  whole = subject.batch(ROWS, 2 * half)
  expected = jax.jit(lambda params: losses.token_losses(model, params, cast(Batch, whole))[0])
  expected = np.asarray(expected(params))
  first, second = (
    {name: x[:, part] for name, x in whole.items()} for part in (slice(half), slice(half, None))
  )
  case = f"two rows of {half} tokens as one"
  try:
    carried_state.check_model(model)
  except carried_state.CarryError as error:
    yield Finding(case="refuses to carry it without end", outcome="refused", says=str(error))
    found = _with_room(model, params, first, second)
  else:
    goes_on = (second["positions"][:, 0] > 0) & (second["segment_ids"][:, 0] > 0)
    second = _as_loaded(second, np.where(goes_on, first["targets"][:, -1], -1))
    first = _as_loaded(first, np.full(ROWS, -1))
    sizes = _sizes(subject)
    case += f" on {' x '.join(f'{axis}={size}' for axis, size in sizes.items())}"
    found = _on_mesh(model, params, MeshSpec(**sizes), first, second)
  # A loss is a difference of two numbers as large as the logits, of order ten.
  allowed = subject.rounding(np.maximum(np.abs(expected), 10))
  yield compare_rows(case, found[..., None], expected[..., None], allowed)


def _with_room(model: LanguageModel, params: Any, first: Any, second: Any) -> np.ndarray:
  """The losses of both halves, from a state that has room for all tokens."""

  @jax.jit
  def halves(params, first, second):
    state = model.initial_state(ROWS, 2 * first["inputs"].shape[1])
    (before, _), state = losses.token_losses_from(state, model, params, first)
    return before, losses.token_losses_from(state, model, params, second)[0][0]

  return np.concatenate(halves(params, first, second), axis=1)


def _sizes(subject: Subject) -> dict[str, int]:
  """The mesh: every axis that the model's mixers allow to be split, of two devices."""
  refused = sharding.refused(subject)
  return {axis: 1 if axis in refused or jax.device_count() == 1 else 2 for axis in AXES}


def _on_mesh(
  model: LanguageModel, params: Any, mesh: MeshSpec, first: Any, second: Any
) -> np.ndarray:
  """The losses of both halves, on a mesh; parameters are split by ZeRO too."""
  parallelism = Parallelism(mesh=mesh, zero=3, rules=sharding.RULES)
  devices = jax.devices()[: math.prod(dataclasses.astuple(mesh))]
  sharding_plan = parallelism.sharding_plan(list_parameters(model), devices)

  def run(params, batch, state):
    (nll, _), state = carried_state.losses_from(state, model, params, batch)
    return nll, state

  specs = carried_state.specs(model, sharding_plan, ROWS)
  run = jax.jit(sharding_plan.losses(run, carried=specs))
  params = jax.device_put(params, sharding_plan.state({"params": params})["params"])
  where = carried_state.shardings(model, sharding_plan, ROWS)
  state = jax.device_put(carried_state.initial_state(model, ROWS), where)
  found = []
  for batch in (first, second):
    nll, state = run(params, jax.device_put(batch, sharding_plan.batch), state)
    found.append(np.asarray(nll))
  return np.concatenate(found, axis=1)


def _as_loaded(row: dict[str, np.ndarray], before: np.ndarray) -> dict[str, np.ndarray]:
  """A part of a row as a loader makes it, with segments and positions that count from its start."""
  ids = row["segment_ids"]
  ids = np.where(ids > 0, ids - ids[:, :1] + 1, 0)
  return batch_of_rows(row["targets"], ids, bos_id=0, before=before)
