"""Measures what models of text find in long contexts: RULER's tasks, by length, task and depth."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from base.ranges import Count
from comparison import measurement, shares
from comparison.measurement import Cached, Runs, RunSpec, TrainedRun
from comparison.page.figure import Axis, Figure, Question
from comparison.statistics import Claims, Interval, paired_difference, series
from data.long_text import DEPTHLESS, Suite

# Values of a result: the share of right answers of a task at a length, and by depth.
Found = Mapping[tuple[RunSpec, str, int], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongTextRecall:
  """Asks every trained run of a size all tasks of a suite at several lengths.

  Attributes:
    suite: the tasks.
    size: the comparison's size to ask.
    lengths: tokens of the contexts, ascending.
    baseline: the model to compare the others with.
    questions: number of examples per task and length.
  """

  suite: Suite
  size: str
  lengths: Sequence[Count]
  baseline: str
  questions: Count = 32

  def __post_init__(self):
    if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
      raise ValueError(f"lengths={tuple(self.lengths)} must be ascending and not empty.")

  def results(self, runs: Runs) -> dict[str, RunSpec]:
    """Returns a result for each run, task and length."""
    measurement.require_model(self.baseline, runs.models)
    measurement.require_size(self.size, runs.sizes, "RULER_SIZE")
    return {
      self._key(spec, name, length): spec
      for spec in self._specs(runs)
      for length in self.lengths
      for name in self.suite.names
    }

  def _specs(self, runs: Runs) -> list[RunSpec]:
    return [
      RunSpec(model=model, size=self.size, seed=seed)
      for model in runs.models
      for seed in runs.seeds
    ]

  def _key(self, spec: RunSpec, name: str, length: int) -> str:
    # The text of files may change; that of the run is known by the run.
    texts = self.suite.texts()
    return ", ".join([str(spec), name, f"{length} tokens", *([f"text {texts}"] if texts else [])])

  def __call__(self, runs: Runs, cached: Cached) -> tuple[Figure, ...]:
    """Trains and asks the models; returns the figures by length, by task and by depth."""

    @functools.lru_cache(maxsize=1)
    def train(spec: RunSpec) -> TrainedRun:
      if spec.seed == runs.seeds[0]:
        # A task without room is told before the training, not after.
        for length in self.lengths:
          for task in self.suite.with_length(length).by_name().values():
            runs.require_recall(spec, task, self.questions)
      return runs.train(spec)

    found: dict[tuple[RunSpec, str, int], Mapping[str, Any]] = {}
    for spec in self._specs(runs):
      for length in self.lengths:
        tasks = self.suite.with_length(length).by_name()
        for name, task in tasks.items():
          found[spec, name, length] = cached(
            self._key(spec, name, length),
            lambda spec=spec, task=task: self._measure(train(spec), task),
          )
    drawn = _Drawn(self, runs, found)
    by_depth = (drawn.by_depth(length) for length in self.lengths)
    ends = dict.fromkeys((self.lengths[0], self.lengths[-1]))
    by_task = (drawn.by_task(length) for length in ends)
    return (drawn.by_length(), *by_task, *(figure for figure in by_depth if figure is not None))

  def _measure(self, run: TrainedRun, task: Any) -> dict[str, Any]:
    asked = run.recall(task, self.questions)
    return {
      "right": asked.accuracy,
      "depths": [[one.start, one.correct, one.count] for one in asked.by("depth")],
      "tokens": run.tokens,
      "length": run.length,
    }


@dataclasses.dataclass(frozen=True)
class _Drawn:
  """Results to draw."""

  part: LongTextRecall
  runs: Runs
  found: Found

  def specs(self, model: str) -> list[RunSpec]:
    """The runs of a model, one per seed."""
    size = self.part.size
    return [RunSpec(model=model, size=size, seed=seed) for seed in self.runs.seeds]

  def rights(self, model: str, names: Sequence[str], length: int) -> list[float]:
    """Returns the mean share of right answers on tasks at a length, one per seed."""
    return [
      float(np.mean([self.found[spec, name, length]["right"] for name in names]))
      for spec in self.specs(model)
    ]

  def figure(self, name: str, **parts: Any) -> Figure:
    """Makes a figure with the conditions of the part."""
    one = next(iter(self.found.values()))
    size = self.part.size
    return Figure(
      name=f"ruler_{name}",
      spread=shares.spread_text(len(self.runs.seeds)),
      conditions=(
        ("size", f"{size} ({one['tokens']:,} training tokens in rows of {one['length']:,})"),
        ("questions", f"{self.part.questions:,} per task, length and seed"),
        ("seeds", ", ".join(map(str, self.runs.seeds))),
        ("score", "share of the answers that the generated text contains"),
        ("sentences", "not those of RULER, so that its published scores do not compare"),
      ),
      source="arXiv 2404.06654",
      **parts,
    )

  def by_length(self) -> Figure:
    """Draws the mean over tasks against the length."""
    names, lengths = self.part.suite.names, self.part.lengths
    asked = self.part.questions * len(names)
    means = {m: [self.rights(m, names, length) for length in lengths] for m in self.runs.models}

    def told(place: int) -> str:
      each = ", ".join(f"{model} {np.mean(of[place]):.0%}" for model, of in means.items())
      return f"{each} at {lengths[place]:,} tokens"

    base = means[self.part.baseline][-1]
    claims = Claims()
    differences = "; ".join(
      claims.says_difference(
        model,
        self.part.baseline,
        paired_difference(of[-1], base),
        lower="is below",
        higher="is above",
        digits=2,
      )
      for model, of in means.items()
      if model != self.part.baseline
    )
    ends = sorted({0, len(lengths) - 1})
    finding = f"Mean of {len(names)} tasks: {'; '.join(map(told, ends))}"
    trained = next(iter(self.found.values()))["length"]
    return self.figure(
      "by_length",
      title="Long texts: right answers against the length",
      finding=f"{finding}; at the last, {differences}." if differences else f"{finding}.",
      x=Axis(label="tokens of the context", log=True, marks=((trained, "trained on"),)),
      y=Axis(label=f"share of right answers, mean of {len(names)} tasks"),
      series=tuple(
        series(model, lengths, [shares.of_seeds(values, asked) for values in of])
        for model, of in means.items()
      ),
      asks=tuple(
        Question(
          text=f"long texts: right answers in {lengths[place]:,} tokens",
          better="higher",
          at=lengths[place],
        )
        for place in ends
      ),
      differences=claims.noted,
    )

  def by_task(self, length: int) -> Figure:
    """Draws the share of right answers by task at a length."""
    names, asked = self.part.suite.names, self.part.questions
    rights = {
      model: [self.rights(model, [name], length) for name in names] for model in self.runs.models
    }
    best = [
      f"{name} {np.mean(rights[model][n]):.0%} ({model})"
      for n, name in enumerate(names)
      for model in [max(rights, key=lambda m, n=n: np.mean(rights[m][n]))]
    ]
    return self.figure(
      f"by_task_{length}",
      title=f"Long texts of {length:,} tokens: right answers by task",
      finding=f"The most by a model: {', '.join(best)}.",
      x=Axis(label="task"),
      y=Axis(label="share of right answers"),
      series=tuple(
        series(model, names, [shares.of_seeds(values, asked) for values in of])
        for model, of in rights.items()
      ),
    )

  def by_depth(self, length: int) -> Figure | None:
    """Draws the share of right answers by depth at a length; None without tasks of a depth."""
    suite = self.part.suite
    names = [
      n for n, task in zip(suite.names, suite.tasks, strict=True) if task.name not in DEPTHLESS
    ]
    if not names:
      return None
    found = {model: self._depths(model, names, length) for model in self.runs.models}

    def worst(model: str) -> str:
      start = min(found[model], key=lambda start: found[model][start].mean)
      return f"{model} is worst ({found[model][start].mean:.0%}) at {start:g}"

    return self.figure(
      f"by_depth_{length}",
      title=f"Long texts of {length:,} tokens: right answers by depth",
      finding=f"By the depth of what is asked, from 0 to 1: {'; '.join(map(worst, found))}.",
      x=Axis(label="depth of the source in the context, tenths from 0 to 1"),
      y=Axis(label=f"share of right answers, {len(names)} tasks"),
      series=tuple(series(model, list(of), list(of.values())) for model, of in found.items()),
    )

  def _depths(self, model: str, names: Sequence[str], length: int) -> dict[float, Interval]:
    """Returns the share by depth, where every seed was asked: seeds have equal questions."""
    counts: dict[float, list[tuple[float, int]]] = {}
    for spec in self.specs(model):
      own: dict[float, tuple[float, int]] = {}
      for name in names:
        for start, right, count in self.found[spec, name, length]["depths"]:
          before = own.get(start, (0.0, 0))
          own[start] = before[0] + right * count, before[1] + count
      for start, (right, count) in own.items():
        counts.setdefault(start, []).append((right / count, count))
    return {
      start: shares.of_seeds([right for right, _ in counts[start]], counts[start][0][1])
      for start in sorted(counts)
    }
