"""Measures the loss by position beyond the training length (section 6.1 of the Griffin paper)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from base.ranges import Count
from comparison import measurement
from comparison.measurement import Cached, Runs, RunSpec
from comparison.page.figure import Axis, Figure, Question
from comparison.quality import positions
from comparison.statistics import Claims, interval, series, spread_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongContext:
  """Trains every model with rows of several lengths, and scores all on the same long rows.

  Steps have the same tokens at every length. Positions are within a document, so that only long
  documents have late ones: compare models at a position, not positions of a model, unless both are
  late.

  Attributes:
    size: the comparison's size to train.
    lengths: tokens per row in training, from short to long.
    factor: length of the scored rows over the longest of `lengths`.
    tokens: held-out tokens to score.
  """

  size: str
  lengths: Sequence[Count]
  factor: Count = 16
  tokens: Count = 2**20

  def __post_init__(self):
    if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
      raise ValueError(f"lengths={self.lengths} must be ascending and not empty.")
    if self.factor < 2:
      raise ValueError(f"factor={self.factor} must be at least 2 to score longer rows.")

  @property
  def scored_length(self) -> int:
    """Tokens per scored row."""
    return self.factor * self.lengths[-1]

  def results(self, runs: Runs) -> dict[str, RunSpec]:
    """Returns a result for each run."""
    measurement.require_size(self.size, runs.sizes, "CONTEXT_SIZE")
    specs = [
      RunSpec(model=model, size=self.size, seed=seed, length=length)
      for length in self.lengths
      for model in runs.models
      for seed in runs.seeds
    ]
    return {str(spec): spec for spec in specs}

  def __call__(self, runs: Runs, cached: Cached) -> tuple[Figure, ...]:
    """Trains and scores the models; returns a figure for each training length."""
    found = measurement.cached_by_run(
      self.results(runs), cached, lambda spec: self._measure(runs, spec)
    )
    return tuple(self._figure(runs, found, length) for length in self.lengths)

  def _measure(self, runs: Runs, spec: RunSpec) -> dict[str, Any]:
    trained = runs.train(spec)
    score = trained.score(length=self.scored_length, tokens=self.tokens)
    buckets = score.by_position(positions.edges(self.scored_length, self.lengths))
    return {
      "buckets": [[one.start, one.stop, one.tokens, one.loss] for one in buckets],
      "trained_tokens": trained.tokens,
      "parameters": trained.parameters,
    }

  def _figure(self, runs: Runs, found: Mapping[RunSpec, Mapping[str, Any]], length: int) -> Figure:
    drawn, told, claims = [], [], Claims()
    for model in runs.models:
      buckets = [
        found[RunSpec(model=model, size=self.size, seed=seed, length=length)]["buckets"]
        for seed in runs.seeds
      ]
      places = [(start + stop) / 2 for start, stop, _, _ in buckets[0]]
      losses = [interval([one[n][3] for one in buckets]) for n in range(len(places))]
      drawn.append(series(model, places, losses))
      told.append(f"{model} {positions.says_beyond(model, buckets, length, claims)}")
    one = found[RunSpec(model=runs.models[0], size=self.size, seed=runs.seeds[0], length=length)]
    last = one["buckets"][-1][1]
    return Figure(
      name=f"long_context_{length}",
      title=f"Loss by position after training on rows of {length:,}",
      finding=(
        f"From the last positions within {length:,} to the last of all, near {last:,}, the loss "
        f"in nats per token changes as follows: {'; '.join(told)}."
      ),
      x=Axis(label="position in the document", log=True, marks=((length, "training length"),)),
      y=Axis(label="held-out loss, nats per token"),
      series=tuple(drawn),
      spread=spread_text(len(runs.seeds)),
      conditions=(
        ("size", f"{self.size} ({one['trained_tokens']:,} training tokens)"),
        ("scored rows", f"of {self.scored_length:,} tokens"),
        ("seeds", ", ".join(map(str, runs.seeds))),
      ),
      source="section 6.1",
      differences=claims.noted,
      asks=(
        Question(
          text=f"loss near position {last:,}, trained on rows of {length:,}",
          better="lower",
          unit="nats",
        ),
      ),
    )
