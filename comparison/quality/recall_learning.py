"""Trains models on a recall task, with new examples in each step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Iterator
from typing import Any, cast

import jax
import numpy as np
import optax

from base.ranges import Count, CountFromZero, NotNegative
from data.loader import batch_of_rows
from data.recall import RecallTask
from data.tokenizers import Tokenizer
from models.language_model import LanguageModel
from training import rates
from training import step as step_lib
from training.optimizer import AdamW, warmup_cosine

# Key of the random generators, different from those of a task's splits.
_STREAM = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """Training schedule of a recall task.

  Attributes:
    steps: optimizer steps.
    batch_size: examples per step.
    learning_rate: peak learning rate after the warm-up, followed by a cosine decay.
    warmup_steps: steps of linear warm-up.
    weight_decay: weight decay of matrices.
    look_every: steps between evaluations.
    examples: number of training examples, which are read in passes; None draws new ones in each
      step.
  """

  steps: Count = 1000
  batch_size: Count = 64
  learning_rate: NotNegative = 3e-3
  warmup_steps: CountFromZero = 50
  weight_decay: NotNegative = 0.1
  look_every: Count = 100
  examples: Count | None = None

  def __post_init__(self):
    if self.examples is not None and self.examples % self.batch_size:
      raise ValueError(
        f"examples={self.examples} must be a multiple of batch_size={self.batch_size}."
      )
    self.optimizer()  # Raises the errors of the warm-up before anything is measured.

  def optimizer(self) -> AdamW:
    """AdamW with the schedule's learning rate."""
    rate = warmup_cosine(peak=self.learning_rate, steps=self.steps, warmup_steps=self.warmup_steps)
    return AdamW(learning_rate=rate, weight_decay=self.weight_decay)

  def place_in_pass(self, step: int) -> int:
    """Returns the batch that a step reads: equal numbers are equal batches."""
    return step if self.examples is None else step % (self.examples // self.batch_size)

  def describe(self) -> str:
    """Tells steps and examples in words."""
    seen = self.steps * self.batch_size
    if self.examples is None or seen <= self.examples:
      return f"{self.steps:,} steps, {seen:,} examples, each seen once"
    return f"{self.steps:,} steps, {seen / self.examples:.3g} passes of {self.examples:,} examples"


def batches(
  task: RecallTask, tokenizer: Tokenizer, schedule: Schedule, seed: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields endless batches of the schedule's examples, one per row; the same for equal seeds.

  No batch is shorter than one before: a step is compiled for every length anew.
  """
  step, length, batch_size = 0, 0, schedule.batch_size
  while True:
    rng = np.random.default_rng([task.seed, _STREAM + seed, schedule.place_in_pass(step)])
    examples = task.draw(tokenizer, rng, batch_size)
    length = max(length, *(len(example.tokens) for example in examples))
    tokens, segment_ids = np.zeros((2, batch_size, length), np.int32)
    mask = np.zeros((batch_size, length), bool)
    for row, example in enumerate(examples):
      tokens[row, : len(example.tokens)] = example.tokens
      segment_ids[row, : len(example.tokens)] = 1
      mask[row, example.answers] = True
    yield batch_of_rows(tokens, segment_ids, mask, bos_id=tokenizer.bos_id)
    step += 1


class Learner:
  """Trains a model on a task, once per seed; compiled once for all seeds and learning rates."""

  def __init__(
    self, model: LanguageModel, task: RecallTask, tokenizer: Tokenizer, schedule: Schedule
  ):
    """Sets the model, the task, the model's tokenizer and the schedule."""
    self._task, self._tokenizer, self._schedule = task, tokenizer, schedule
    self._optimizer = schedule.optimizer()
    self._start, self._step = _programs(
      cast(Hashable, model), rates.transformation(self._optimizer)
    )

  def __call__(self, seed: int) -> Iterator[tuple[int, Any]]:
    """Yields (steps done, parameters) every `look_every` steps, and at the end.

    Args:
      seed: seed of parameters and examples; equal seeds read equal examples for all models.
    """
    schedule, state = self._schedule, self._start(np.uint32(seed % 2**32))
    data = batches(self._task, self._tokenizer, schedule, seed)
    window = rates.RateWindow(self._optimizer.learning_rate)
    for step in range(1, schedule.steps + 1):
      coming = window.at(step, state.spike_detector.taken)
      state, _ = self._step(state, next(data), coming)
      if step % schedule.look_every == 0 or step == schedule.steps:
        yield step, state.params


@functools.lru_cache(maxsize=2)
def _programs(model: Any, optimizer: optax.GradientTransformation) -> tuple[Any, Any]:
  """Returns the jitted functions of a training's start and step, kept for its other rates."""
  options = step_lib.StepOptions()
  start = jax.jit(lambda seed: step_lib.initial_state(model, optimizer, options, seed))
  return start, step_lib.jit_train_step(model, optimizer, options)
