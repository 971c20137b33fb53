"""Recall against the length of the context, for models trained on the task (section 6.2, appendix H)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.recall import RecallTask
from data.vocabularies import Vocabulary
from evaluation.figure import Axis, Figure
from evaluation.part import Remember
from evaluation.recall import RecallScorer
from evaluation.recall_learning import Schedule, learn
from evaluation.statistics import (
  Interval,
  interval,
  paired_difference,
  says_difference,
  series,
  spread_text,
)
from models.language_model import LanguageModel

_KINDS = {
  "distance": "tokens between an answer and what it repeats",
  "depth": "place in the context of what is asked for, from 0 to 1",
  "position": "place in the answer",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallCurves:
  """Trains every model on a recall task, and asks it at the training length and at others.

  Attributes:
    task: at the length that models are trained at.
    vocabulary: of the models' ids.
    schedule: how they are trained.
    lengths: contexts that are asked about, rising; the training length is one of them.
    kind: what failures are told apart by: 'distance', 'depth' or 'position'.
    baseline: the model that the others are compared with.
    seeds: of parameters and examples.
    questions: examples asked per length.
  """

  task: RecallTask
  vocabulary: Vocabulary
  lengths: Sequence[int]
  baseline: str
  schedule: Schedule = dataclasses.field(default_factory=Schedule)
  kind: str = "distance"
  seeds: Sequence[int] = (0, 1, 2)
  questions: int = 256

  def __post_init__(self):
    if list(self.lengths) != sorted(set(self.lengths)) or self.task.length not in self.lengths:
      raise ValueError(
        f"lengths={tuple(self.lengths)} must rise and hold the training length {self.task.length}."
      )
    if self.kind not in _KINDS:
      raise ValueError(f"kind={self.kind!r} must be one of {', '.join(_KINDS)}.")
    if self.questions < 1 or not self.seeds:
      raise ValueError(f"questions={self.questions} and seeds={self.seeds}: give at least one.")

  def cells(self, models: Mapping[str, LanguageModel]) -> dict[str, float]:
    """A cell for each model and seed: its training, and all questions."""
    for name, model in models.items():
      if model.vocab_size < self.vocabulary.size:
        raise ValueError(
          f"{name} has {model.vocab_size} tokens, {self.task.name} needs {self.vocabulary.size}:"
          f" set VOCAB_SIZE = {self.vocabulary.size}."
        )
    if self.baseline not in models:
      raise ValueError(f"baseline={self.baseline!r} is none of {', '.join(models)}.")
    return {_key(name, seed): 1.0 for name in models for seed in self.seeds}

  def __call__(self, models: Mapping[str, LanguageModel], remember: Remember) -> tuple[Figure, ...]:
    """Trains and asks what has not been, and draws."""
    self.cells(models)
    found = {
      name: [
        remember(_key(name, seed), lambda model=model, seed=seed: self._measure(model, seed))
        for seed in self.seeds
      ]
      for name, model in models.items()
    }
    return self._by_length(found), self._learning(found), self._by_kind(found)

  def _measure(self, model: LanguageModel, seed: int) -> dict[str, Any]:
    """Accuracies as JSON values: while learning, by length, and apart by kind."""
    scorer = RecallScorer(model, self.vocabulary)
    curve = []
    for step, params in learn(model, self.task, self.vocabulary, self.schedule, seed):
      curve.append([step, scorer(params, self.task, self.questions).accuracy])
    asked = [
      scorer(params, self.task.with_length(length), self.questions) for length in self.lengths
    ]
    total = asked[0]
    for more in asked[1:]:
      total += more
    # Places in the answer and in the context are told at the training length, distances at all.
    told = total if self.kind == "distance" else asked[self.lengths.index(self.task.length)]
    return {
      "curve": curve,
      "lengths": [recalled.accuracy for recalled in asked],
      "exact": [recalled.exact for recalled in asked],
      "kinds": [[share.start, share.correct, share.count] for share in told.by(self.kind)],
    }

  def _figure(self, name: str, **parts: Any) -> Figure:
    schedule, task = self.schedule, self.task
    examples = schedule.steps * schedule.batch_size
    fields = task.describe()
    hidden = ("corpus", "revision", "examples", "heldout_examples", "seed", "length")
    options = {key: value for key, value in fields.items() if key not in hidden}
    return Figure(
      name=f"{task.name.replace('-', '_')}_{name}",
      spread=spread_text(len(self.seeds)),
      conditions=(
        ("task", ", ".join([task.name, *(f"{key} {value}" for key, value in options.items())])),
        ("training length", f"{task.length:,} {task.unit}"),
        (
          "training",
          f"{schedule.steps:,} steps, {examples:,} examples, each seen once, peak learning rate"
          f" {schedule.learning_rate:g}",
        ),
        ("questions", f"{self.questions:,} per length and seed"),
        ("seeds", ", ".join(map(str, self.seeds))),
      ),
      source="section 6.2, appendix H",
      **parts,
    )

  def _by_length(self, found: Mapping[str, Any]) -> Figure:
    trained, longest = self.lengths.index(self.task.length), len(self.lengths) - 1

    def at(name: str, place: int) -> list[float]:
      return [run["lengths"][place] for run in found[name]]

    def told(place: int) -> str:
      shares = ", ".join(f"{name} {np.mean(at(name, place)):.0%}" for name in found)
      return f"{shares} at {self.lengths[place]:,} {self.task.unit}"

    places = sorted({trained, min(trained + 1, longest), longest})
    shares = {name: at(name, longest) for name in found}
    differences = self._differences(shares, lower="is below", higher="is above")
    return self._figure(
      "by_length",
      title=f"{_title(self.task)}: right answers against the length of the context",
      finding=f"Right answers: {'; '.join(map(told, places))}; there {differences}.",
      x=Axis(label=f"context, {self.task.unit}", log=True),
      y=Axis(label="share of right answer tokens"),
      series=tuple(
        series(name, self.lengths, [_share(at(name, n)) for n in range(len(self.lengths))])
        for name in found
      ),
    )

  def _differences(self, shares: Mapping[str, list[float]], *, lower: str, higher: str) -> str:
    """What the shares of each model, one per seed, say beside the baseline's."""
    return "; ".join(
      says_difference(
        name,
        f"the {self.baseline}",
        paired_difference(values, shares[self.baseline]),
        lower=lower,
        higher=higher,
        digits=2,
      )
      for name, values in shares.items()
      if name != self.baseline
    )

  def _learning(self, found: Mapping[str, Any]) -> Figure:
    def mean_share(name: str) -> list[float]:
      return [float(np.mean([share for _, share in run["curve"]])) for run in found[name]]

    shares = {name: mean_share(name) for name in found}
    differences = self._differences(
      shares, lower="learns more slowly than", higher="learns faster than"
    )
    return self._figure(
      "learning",
      title=f"{_title(self.task)}: right answers at the training length while learning",
      finding=f"By the share of right answers averaged over training, {differences}.",
      x=Axis(label="training step"),
      y=Axis(label="share of right answer tokens"),
      series=tuple(
        series(
          name,
          [step for step, _ in runs[0]["curve"]],
          [_share(shares) for shares in zip(*map(_shares, runs), strict=True)],
        )
        for name, runs in found.items()
      ),
    )

  def _by_kind(self, found: Mapping[str, Any]) -> Figure:
    def values(name: str) -> tuple[list[float], list[Interval]]:
      shares: dict[float, list[float]] = {}
      for run in found[name]:
        for start, correct, _ in run["kinds"]:
          shares.setdefault(start, []).append(correct)
      everywhere = {start: all_ for start, all_ in shares.items() if len(all_) == len(found[name])}
      return list(everywhere), [_share(all_) for all_ in everywhere.values()]

    def worst(name: str) -> str:
      starts, shares = values(name)
      place = int(np.argmin([share.mean for share in shares]))
      return f"{name} is worst ({shares[place].mean:.0%}) at {starts[place]:g}"

    return self._figure(
      f"by_{self.kind}",
      title=f"{_title(self.task)}: where answers fail",
      finding=f"By {_KINDS[self.kind]}: {'; '.join(map(worst, found))}.",
      # A distance is at least 1; other kinds begin at 0, which a logarithmic axis does not have.
      x=Axis(label=_KINDS[self.kind], log=self.kind == "distance"),
      y=Axis(label="share of right answer tokens"),
      series=tuple(series(name, *values(name)) for name in found),
    )


def _key(name: str, seed: int) -> str:
  return f"{name}, seed {seed}"


def _title(task: RecallTask) -> str:
  return task.name.replace("-", " ").capitalize()


def _shares(run: Mapping[str, Any]) -> list[float]:
  return [share for _, share in run["curve"]]


def _share(values: Sequence[float]) -> Interval:
  """The interval of a share, which is no less than 0 and no more than 1."""
  found = interval(values)
  return dataclasses.replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
