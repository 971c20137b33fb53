"""The programs of a training: shapes of its state, the state's creation, and the step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from parallel.sharding_plan import ShardingPlan
from training import checkpoint as checkpoint_lib
from training import padded_vocabulary, rates
from training import step as step_lib
from training.checkpoint import abstract_like

# Programs that a process keeps: a comparison comes back to each of its models and sizes.
KEPT = 16


def trace(
  *,
  model: Any,
  optimizer: optax.GradientTransformation,
  options: step_lib.StepOptions,
  sharding_plan: ShardingPlan,
  batch_size: int,
  length: int,
) -> None:
  """Traces a step without arrays; `training.loop.train` uses the trace.

  Raises:
    ValueError: model, options and batch do not fit.
  """
  abstract, _, take_step = make(
    model, optimizer, options, sharding_plan, kept_states(options, batch_size)
  )
  batch = step_lib.abstract_batch(batch_size, length)
  # As `ShardingPlan.place` makes it: JAX traces again for arguments that lie elsewhere.
  batch = abstract_like(batch, lambda tree: jax.tree.map(lambda _: sharding_plan.batch, tree))
  take_step.trace(abstract, batch, rates.abstract(sharding_plan))


def require_same_arrays(
  run_dir: Path,
  model: Any,
  optimizer: optax.GradientTransformation,
  options: step_lib.StepOptions,
  sharding_plan: ShardingPlan,
  batch_size: int,
) -> Any:
  """See `training.checkpoint.require_same_arrays`; returns the abstract parameters."""
  abstract, _, _ = make(model, optimizer, options, sharding_plan, kept_states(options, batch_size))
  checkpoint_lib.require_same_arrays(run_dir, abstract, padded_vocabulary.VocabularyRows.of(model))
  return abstract.params


def kept_states(options: step_lib.StepOptions, batch_size: int) -> int | None:
  """Returns the number of states that a train state keeps; None if it keeps none."""
  return batch_size if options.keeps_states else None


@functools.lru_cache(maxsize=KEPT)
def make(
  model: Any,
  optimizer: optax.GradientTransformation,
  options: step_lib.StepOptions,
  sharding_plan: ShardingPlan,
  rows: int | None = None,
) -> tuple[Any, Callable[..., step_lib.TrainState], Callable[..., Any]]:
  """Returns the train state's shapes, `create(seed, given)` and the step.

  `rows` is of `kept_states`. Cached, so that runs of one process that differ only in their seed, or
  with an optimizer of `training.rates.transformation` in their schedule, are compiled once.
  """

  def create(seed, given):
    return step_lib.initial_state(model, optimizer, options, seed, given, rows=rows)

  placed = functools.partial(step_lib.state_shardings, model, sharding_plan)
  abstract = abstract_like(jax.eval_shape(create, np.uint32(0), {}), placed)
  where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return (
    abstract,
    jax.jit(create, out_shardings=where, donate_argnums=1),
    step_lib.jit_train_step(model, optimizer, options, sharding_plan),
  )
