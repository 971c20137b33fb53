"""Measures the loss by position of models that are trained with and without other rows' states."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from base.ranges import Count
from comparison import measurement
from comparison.measurement import Cached, Runs, RunSpec
from comparison.page.figure import Axis, Figure, Question
from comparison.quality import positions
from comparison.statistics import (
  Claims,
  interval,
  paired_difference,
  series,
  spread_text,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateCarry:
  """Trains every model in several ways that differ in what rows begin with; scores long rows.

  All ways read equally many tokens. Scored rows begin with nothing, whatever the training: they are
  cut from held-out text, so that a position is one in the row, or in a document that starts in it.

  Attributes:
    size: the comparison's size to train.
    ways: maps the name of each way to its choices, gin files and macros; the others are compared
      with the first.
    length: tokens per row in training; None is the configuration's.
    scored_length: tokens per scored row.
    tokens: held-out tokens to score.
  """

  size: str
  ways: Mapping[str, Sequence[str]]
  length: Count | None = None
  scored_length: Count = 2**15
  tokens: Count = 2**20

  def __post_init__(self):
    if len(self.ways) < 2:
      raise ValueError(f"ways={dict(self.ways)} must have at least two, to compare them.")

  def results(self, runs: Runs) -> dict[str, RunSpec]:
    """Returns a result for each run."""
    measurement.require_size(self.size, runs.sizes, "CARRY_SIZE")
    specs = [
      self._spec(model, way, seed)
      for model in runs.models
      for way in self.ways
      for seed in runs.seeds
    ]
    return {str(spec): spec for spec in specs}

  def __call__(self, runs: Runs, cached: Cached) -> tuple[Figure, ...]:
    """Trains and scores the models; returns a figure for each."""
    found = measurement.cached_by_run(
      self.results(runs), cached, lambda spec: self._measure(runs, spec)
    )
    return tuple(self._figure(runs, found, model) for model in runs.models)

  def _spec(self, model: str, way: str, seed: int) -> RunSpec:
    choices = tuple(self.ways[way])
    return RunSpec(model=model, size=self.size, seed=seed, length=self.length, choices=choices)

  def _measure(self, runs: Runs, spec: RunSpec) -> dict[str, Any]:
    trained = runs.train(spec)
    if self.scored_length <= trained.length:
      raise ValueError(
        f"scored_length={self.scored_length} must be above the {trained.length} tokens of a row in "
        "training."
      )
    score = trained.score(length=self.scored_length, tokens=self.tokens)
    edges = positions.edges(self.scored_length, [trained.length])
    return {
      "buckets": [[one.start, one.stop, one.tokens, one.loss] for one in score.by_position(edges)],
      "trained_tokens": trained.tokens,
      "length": trained.length,
    }

  def _figure(self, runs: Runs, found: Mapping[RunSpec, Mapping[str, Any]], model: str) -> Figure:
    first, *others = self.ways
    buckets = {
      way: [found[self._spec(model, way, seed)]["buckets"] for seed in runs.seeds]
      for way in self.ways
    }
    one = found[self._spec(model, first, runs.seeds[0])]
    places = [(start + stop) / 2 for start, stop, _, _ in one["buckets"]]
    last = {way: [seed[-1][3] for seed in buckets[way]] for way in self.ways}
    claims = Claims()
    told = [
      claims.says_difference(
        way,
        first,
        paired_difference(last[way], last[first]),
        lower="has a lower loss than",
        higher="has a higher loss than",
      )
      for way in others
    ]
    beyond = [
      f"{way} {positions.says_beyond(way, buckets[way], one['length'], claims)}"
      for way in self.ways
    ]
    return Figure(
      name=f"state_carry_{model.lower().replace(' ', '_')}",
      title=f"{model}: loss by position after training on rows of {one['length']:,}",
      finding=(
        f"Near position {one['buckets'][-1][1]:,}, in nats per token: {'; '.join(told)}. From the "
        f"last positions within {one['length']:,} to there, the loss changes as follows: "
        f"{'; '.join(beyond)}."
      ),
      x=Axis(
        label="position in the row or document", log=True, marks=((one["length"], "training row"),)
      ),
      y=Axis(label="held-out loss, nats per token"),
      series=tuple(
        series(way, places, [interval(losses) for losses in _by_place(buckets[way])])
        for way in self.ways
      ),
      spread=spread_text(len(runs.seeds)),
      conditions=(
        ("size", f"{self.size} ({one['trained_tokens']:,} training tokens)"),
        ("scored rows", f"of {self.scored_length:,} tokens"),
        ("seeds", ", ".join(map(str, runs.seeds))),
      ),
      source="arXiv 2507.02782",
      differences=claims.noted,
      asks=(
        Question(
          text=f"{model}: loss near position {one['buckets'][-1][1]:,}",
          better="lower",
          unit="nats",
        ),
      ),
    )


def _by_place(buckets: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
  """The loss of every seed at each place."""
  return [[one[3] for one in seeds] for seeds in zip(*buckets, strict=True)]
