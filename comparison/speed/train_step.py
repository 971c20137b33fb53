"""Training steps of a model, for timing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from data.loader import batch_of_rows
from models.accounting import list_parameters
from models.language_model import LanguageModel
from parallel.sharding_plan import Parallelism, on_one_device
from training.checkpoint import abstract_like
from training.optimizer import AdamW
from training.step import StepOptions, initial_state, jit_train_step

_OPTIONS = StepOptions()
_ADAMW = AdamW(learning_rate=optax.constant_schedule(1e-4))


class TrainingSteps:
  """Consecutive training steps of the same, initially random parameters."""

  def __init__(self, model: LanguageModel, parallelism: Parallelism | None = None):
    """Sets the model, and how it is split over devices; None uses one."""
    self._model = model
    self._optimizer = _ADAMW.transformation()
    parameters = list_parameters(model)
    self._sharding_plan = (
      parallelism.sharding_plan(parameters) if parallelism else on_one_device(parameters)
    )
    self._steps: dict[LanguageModel, Callable[..., Any]] = {}

  @functools.cached_property
  def _carried(self) -> list[Any]:
    """The train state, in a list because every step replaces it; made at the first step."""
    create = functools.partial(initial_state, self._model, self._optimizer, _OPTIONS, 0)
    abstract = abstract_like(jax.eval_shape(create), self._sharding_plan.state)
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return [jax.jit(create, out_shardings=where)()]

  def of(
    self, batch_size: int, length: int, model: LanguageModel | None = None
  ) -> Callable[[], dict[str, jax.Array]]:
    """Returns a run of one step: loss, gradient and AdamW's update.

    Args:
      batch_size: rows of random tokens, the same in every step.
      length: tokens per row, one document each.
      model: an equivalent model with another implementation; None is the model itself.
    """
    tokens = np.random.default_rng(0).integers(0, self._model.vocab_size, (batch_size, length))
    batch = batch_of_rows(tokens, np.ones_like(tokens), bos_id=0)
    self._sharding_plan.check_batch(batch_size, length)
    batch = self._sharding_plan.place(batch, batch_size)
    step = self._compiled(model or self._model)

    def run() -> dict[str, jax.Array]:
      self._carried[0], metrics = step(self._carried[0], batch)
      return metrics

    return run

  def _compiled(self, model: LanguageModel) -> Callable[..., Any]:
    """Returns the same function for the same model, so that JAX compiles it once per shape."""
    if model not in self._steps:
      step = jit_train_step(model, self._optimizer, _OPTIONS, self._sharding_plan)
      self._steps[model] = step
    return self._steps[model]
