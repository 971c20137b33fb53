"""Measures recall of models trained on text: phone book, pass key by depth (section 6.2)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from base.ranges import Count
from comparison import measurement
from comparison.measurement import Cached, Runs, RunSpec
from comparison.page.figure import Figure
from comparison.quality.recall_figures import Questions
from data.recall import RecallTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallOfRuns:
  """Scores the comparison's trained models; their tokenizer must be able to encode the task.

  Attributes:
    task: the task; its answers must be generated, which also runs on a mesh of devices.
    size: the comparison's size to score.
    lengths: context lengths to score in the task's unit, ascending.
    baseline: the model to compare the others with.
    kind: how to group answers, over all lengths: by 'distance', 'depth' or 'position'.
    questions: number of examples per length.
  """

  task: RecallTask
  size: str
  lengths: Sequence[Count]
  baseline: str
  kind: str = "depth"
  questions: Count = 128

  def __post_init__(self):
    self._questions(seeds=(0,))
    if not self.task.generates:
      raise ValueError(
        f"{self.task.name} is not a task with generated answers, such as phonebook or needle. "
        "Train models on it with recall_curves.RecallCurves."
      )

  def results(self, runs: Runs) -> dict[str, RunSpec]:
    """Returns a result for each run."""
    measurement.require_model(self.baseline, runs.models)
    measurement.require_size(self.size, runs.sizes, "RECALL_SIZE")
    specs = [
      RunSpec(model=model, size=self.size, seed=seed)
      for model in runs.models
      for seed in runs.seeds
    ]
    return {str(spec): spec for spec in specs}

  def __call__(self, runs: Runs, cached: Cached) -> tuple[Figure, ...]:
    """Trains and scores the models; returns the figures."""
    found = measurement.cached_by_run(
      self.results(runs), cached, lambda spec: self._measure(runs, spec)
    )
    by_model = {
      model: [value for spec, value in found.items() if spec.model == model]
      for model in runs.models
    }
    one = next(iter(found.values()))
    questions = self._questions(
      seeds=runs.seeds,
      conditions=(
        ("size", f"{self.size} ({one['tokens']:,} training tokens of text)"),
        ("training length", f"{one['length']:,} tokens"),
      ),
    )
    return questions.by_length(by_model), questions.by_kind(by_model)

  def _questions(self, **options: Any) -> Questions:
    return Questions(
      task=self.task,
      lengths=self.lengths,
      kind=self.kind,
      count=self.questions,
      baseline=self.baseline,
      **options,
    )

  def _measure(self, runs: Runs, spec: RunSpec) -> dict[str, Any]:
    for length in self.lengths:
      runs.require_recall(spec, self.task.with_length(length), self.questions)
    trained = runs.train(spec)
    asked = [
      trained.recall(self.task.with_length(length), self.questions) for length in self.lengths
    ]
    together = functools.reduce(lambda one, more: one + more, asked)
    answers = self._questions(seeds=runs.seeds).answers(asked, together)
    return {**answers, "tokens": trained.tokens, "length": trained.length}
