"""Measures recall by context length of models trained on the task (section 6.2, appendix H)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from base.ranges import Count, Seed
from comparison.measurement import Cached
from comparison.page.figure import Axis, Figure
from comparison.quality.recall_figures import Found, Questions, share
from comparison.quality.recall_learning import Learner, Schedule
from comparison.statistics import Claims, series
from data.recall import RecallTask
from data.tokenizers import Tokenizer
from evaluation.recall import RecallScorer
from models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallCurves:
  """Trains every model on a recall task, and scores it at the training length and at others.

  Attributes:
    task: the task at the training length.
    vocabulary: the models' tokenizer.
    schedule: the training schedule.
    lengths: context lengths to score, ascending, including the training length.
    kind: how to group answers: by 'distance', 'depth' or 'position'.
    baseline: the model to compare the others with.
    seeds: seeds of parameters and examples.
    questions: number of examples per length.
  """

  task: RecallTask
  vocabulary: Tokenizer
  lengths: Sequence[Count]
  baseline: str
  schedule: Schedule = dataclasses.field(default_factory=Schedule)
  kind: str = "distance"
  seeds: Sequence[Seed] = (0, 1, 2)
  questions: Count = 256

  def __post_init__(self):
    if self.task.length not in self._questions.lengths:
      raise ValueError(
        f"lengths={tuple(self.lengths)} must include the training length {self.task.length}."
      )

  @property
  def _questions(self) -> Questions:
    return Questions(
      task=self.task,
      lengths=self.lengths,
      kind=self.kind,
      count=self.questions,
      baseline=self.baseline,
      seeds=self.seeds,
      conditions=self._conditions(f"peak learning rate {self.schedule.learning_rate:g}"),
    )

  def _conditions(self, rate: str) -> tuple[tuple[str, str], ...]:
    schedule, task = self.schedule, self.task
    return (
      ("training length", task.sizes),
      (
        "training",
        f"{schedule.describe()}, {rate}",
      ),
    )

  def results(self, models: Mapping[str, LanguageModel]) -> dict[str, float]:
    """Returns a result for each model and seed: its training and all its scores."""
    for name, model in models.items():
      if model.vocab_size < self.vocabulary.size:
        raise ValueError(
          f"{name} has {model.vocab_size} tokens, {self.task.name} needs {self.vocabulary.size}:"
          f" set VOCAB_SIZE = {self.vocabulary.size} in its choices."
        )
    if self.baseline not in models:
      raise ValueError(f"baseline={self.baseline!r} is none of {', '.join(models)}.")
    return {_key(name, seed): 1.0 for name in models for seed in self.seeds}

  def model_of(self, key: str, models: Mapping[str, LanguageModel]) -> str:
    """The model that a result is of: another model in the comparison does not change it."""
    # Of names that begin with each other, the longest.
    return max((name for name in models if key.startswith(f"{name}, ")), key=len)

  def __call__(self, models: Mapping[str, LanguageModel], cached: Cached) -> tuple[Figure, ...]:
    """Trains and scores the models; returns the figures."""
    self.results(models)
    found = {}
    for name, model in models.items():
      schedule = self._schedule(name, model, cached)
      # The seeds share compiled programs.
      learner = Learner(model, self.task, self.vocabulary, schedule)
      measure = functools.partial(self._measure, learner, RecallScorer(model, self.vocabulary))
      found[name] = [
        cached(_key(name, seed), functools.partial(measure, seed)) for seed in self.seeds
      ]
    questions = self._questions
    by_length = questions.by_length(found, trained=self.task.length)
    return by_length, self._learning(found), questions.by_kind(found)

  def _schedule(self, name: str, model: LanguageModel, cached: Cached) -> Schedule:
    """Returns the training schedule of a model."""
    del name, model, cached
    return self.schedule

  def _measure(self, learner: Learner, scorer: RecallScorer, seed: int) -> dict[str, Any]:
    """Measures accuracies during training, by length, and by kind, as JSON values."""
    curve = []
    for step, params in learner(seed):
      curve.append([step, scorer(params, self.task, self.questions).accuracy])
    asked = [
      scorer(params, self.task.with_length(length), self.questions) for length in self.lengths
    ]
    # By position or depth at the training length; by distance over all lengths.
    told = asked[self.lengths.index(self.task.length)]
    if self.kind == "distance":
      told = functools.reduce(lambda one, more: one + more, asked)
    return {"curve": curve, **self._questions.answers(asked, told)}

  def _learning(self, found: Found) -> Figure:
    def mean_share(name: str) -> list[float]:
      return [float(np.mean([right for _, right in run["curve"]])) for run in found[name]]

    questions, claims = self._questions, Claims()
    differences = questions.differences(
      claims,
      {name: mean_share(name) for name in found},
      lower="learns more slowly than",
      higher="learns faster than",
    )
    return questions.figure(
      "learning",
      title=f"{questions.title}: right answers at {self.task.sizes} during training",
      finding=f"By the share of right answers averaged over training, {differences}.",
      x=Axis(label="training step"),
      y=Axis(label="share of right answer tokens"),
      series=tuple(
        series(
          name,
          [step for step, _ in runs[0]["curve"]],
          [share(rights) for rights in zip(*map(_rights, runs), strict=True)],
        )
        for name, runs in found.items()
      ),
      differences=claims.noted,
    )


def _key(name: str, seed: int) -> str:
  return f"{name}, seed {seed}"


def _rights(run: Mapping[str, Any]) -> list[float]:
  return [right for _, right in run["curve"]]
