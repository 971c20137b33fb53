"""Scores runs that exist on one held-out text: which is better, and where in a row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from base.ranges import Count
from comparison import measurement
from comparison.measurement import Cached, Runs, RunSpec
from comparison.page.figure import Axis, Figure, Question
from comparison.statistics import (
  CONFIDENCE,
  Claims,
  Interval,
  interval,
  paired_difference,
  series,
  spread_text,
)
from evaluation import perplexity
from evaluation.perplexity import Score

Results = Mapping[RunSpec, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
  """Scores every run of the largest size on the same rows of held-out text.

  With one seed the differences are between parts of the text, pair by pair, and their interval is
  over the parts: it tells whether the difference is one of this text, not what another seed gives.

  Attributes:
    baseline: the model to compare the others with.
    length: tokens per row.
    factor: length of further scored rows over `length`, for the loss by position.
    tokens: tokens to score.
    batch_tokens: tokens per scored batch.
    parts: parts of the text to compare pair by pair.
    recorded: draws the held-out losses that the runs recorded. Only those of the same rows compare.
  """

  baseline: str
  length: Count
  factor: Count = 4
  tokens: Count = 2**19
  batch_tokens: Count = 8192
  parts: Count = 16
  recorded: bool = True

  def results(self, runs: Runs) -> dict[str, RunSpec]:
    """Returns a result for each run."""
    measurement.require_model(self.baseline, runs.models)
    specs = [
      RunSpec(model=model, size=runs.sizes[-1], seed=seed)
      for model in runs.models
      for seed in runs.seeds
    ]
    return {str(spec): spec for spec in specs}

  def __call__(self, runs: Runs, cached: Cached) -> tuple[Figure, ...]:
    """Scores the runs; returns the figures."""
    found = measurement.cached_by_run(
      self.results(runs), cached, lambda spec: self._measure(runs, spec)
    )
    drawn = _Drawn(self, runs, found)
    figures = drawn.differences(), drawn.by_flops(), drawn.by_position()
    if self.recorded:
      figures = *figures, drawn.recorded()
    return tuple(figure for figure in figures if figure is not None)

  def _measure(self, runs: Runs, spec: RunSpec) -> dict[str, Any]:
    run = runs.train(spec)
    scored = {"tokens": self.tokens, "batch_tokens": self.batch_tokens}
    scores = _with_bytes(run.scores(length=self.length, **scored))
    groups = np.array_split(np.arange(len(scores)), min(self.parts, len(scores)))
    parts = [perplexity.total([scores[n] for n in group]) for group in groups]
    further = run.scores(length=self.factor * self.length, **scored)
    by_position = perplexity.total(further).by_position()
    return {
      "parameters": run.parameters,
      "flops": run.flops,
      "tokens": run.tokens,
      "length": run.length,
      "parts": [_part(score) for score in parts],
      "by_position": [[b.start, b.stop, b.loss] for b in by_position],
      "recorded": [[tokens, loss] for tokens, loss in run.recorded.items() if math.isfinite(loss)],
    }


def _with_bytes(scores: Sequence[Score]) -> list[Score]:
  """Joins a score without bytes, such as of a document's end alone, to the one before.

  Raises:
    ValueError: there is no text.
  """
  found: list[Score] = []
  for score in scores:
    if found and not (found[-1].bytes and score.bytes):
      found[-1] += score
    else:
      found.append(score)
  return [perplexity.total([score]) for score in found]


def _part(score: Score) -> list[float]:
  """The nats, tokens and bytes of a part of the text."""
  return [float(score.losses.sum()), score.tokens, score.bytes]


@dataclasses.dataclass(frozen=True)
class _Drawn:
  """Results to draw."""

  part: HeldOutLoss
  runs: Runs
  found: Results

  def of(self, model: str) -> list[Mapping[str, Any]]:
    """Returns the results of a model, one per seed."""
    size = self.runs.sizes[-1]
    return [self.found[RunSpec(model=model, size=size, seed=seed)] for seed in self.runs.seeds]

  def bits(self, model: str) -> list[float]:
    """Returns bits per byte of the whole text, one per seed."""
    return [_bits(np.sum(one["parts"], axis=0)) for one in self.of(model)]

  def difference(self, model: str) -> Interval:
    """Returns the bits per byte minus the baseline's, over seeds, or else over parts of the text.

    The mean over parts is near the difference on the whole text, and not equal: parts differ in
    bytes.
    """
    if len(self.runs.seeds) > 1:
      return paired_difference(self.bits(model), self.bits(self.part.baseline))
    mine, theirs = (self.of(name)[0]["parts"] for name in (model, self.part.baseline))
    return paired_difference([_bits(one) for one in mine], [_bits(one) for one in theirs])

  @property
  def others(self) -> list[str]:
    """The models but the baseline."""
    return [model for model in self.runs.models if model != self.part.baseline]

  @property
  def conditions(self) -> tuple[tuple[str, str], ...]:
    """What each model is: parameters, training tokens, FLOPs."""
    told = []
    for model in self.runs.models:
      one = self.of(model)[0]
      training = (
        f"{one['tokens']:,} training tokens in rows of {one['length']:,}, {one['flops']:.3g} FLOPs"
      )
      told.append(
        (
          f"{model}:",
          f"{one['parameters']:,} parameters, {training if one['tokens'] else 'imported weights'}",
        )
      )
    return tuple(told)

  @property
  def scored(self) -> tuple[tuple[str, str], ...]:
    """What the models are scored on, and the seeds that they have in common."""
    scored = sum(part[1] for part in self.of(self.part.baseline)[0]["parts"])
    rows = f"{scored:,.0f} tokens in rows of {self.part.length:,}"
    seeds = self.runs.seeds
    return ("scored", rows), *([("seeds", ", ".join(map(str, seeds)))] if len(seeds) > 1 else [])

  @property
  def spread(self) -> str:
    """The meaning of intervals of differences."""
    if len(self.runs.seeds) > 1:
      return f"{spread_text(len(self.runs.seeds))}, paired by seed"
    parts = len(self.of(self.part.baseline)[0]["parts"])
    if parts < 2:
      return "one seed, one part of text: spread unknown"
    return (
      f"{CONFIDENCE:.0%} interval (Student's t) over {parts} parts of the text, paired; one seed "
      "each, so it does not tell what another seed gives"
    )

  def differences(self) -> Figure:
    """Draws bits per byte minus the baseline's."""
    base, found = self.part.baseline, {model: self.difference(model) for model in self.others}
    few = "seeds" if len(self.runs.seeds) > 1 else "parts of text"
    claims = Claims()
    told = [
      claims.says_difference(
        model, base, one, lower="is better than", higher="is worse than", digits=4, few=few
      )
      for model, one in found.items()
    ]
    return Figure(
      name="held_out_difference",
      title=f"Held-out loss relative to {base}",
      finding=f"In bits per byte: {'; '.join(told)}.",
      x=Axis(label="run"),
      y=Axis(label=f"bits per byte minus those of {base}"),
      series=tuple(series(model, [model], [one]) for model, one in found.items()),
      spread=self.spread,
      conditions=(*self.conditions, *self.scored),
      differences=claims.noted,
      asks=(
        Question(text=f"held-out loss minus that of {base}", better="lower", unit="bits per byte"),
      ),
    )

  def by_flops(self) -> Figure | None:
    """Draws bits per byte against the FLOPs of training; None if all weights are imported."""
    flops = {model: self.of(model)[0]["flops"] for model in self.runs.models}
    models = [model for model in self.runs.models if flops[model]]
    if not models:
      return None
    bits = {model: interval(self.bits(model)) for model in models}
    best = [
      model
      for model in models
      if not any(
        flops[other] <= flops[model] and bits[other].mean < bits[model].mean for other in models
      )
    ]
    return Figure(
      name="held_out_by_flops",
      title="Held-out loss against training compute",
      finding=" ".join(
        [f"No other has a lower loss with as few FLOPs: {', '.join(best)}.", *self._unknown(flops)]
      ),
      x=Axis(label="FLOPs of the training", log=True),
      y=Axis(label="held-out loss, bits per byte"),
      series=tuple(series(model, [flops[model]], [bits[model]]) for model in models),
      spread=spread_text(len(self.runs.seeds)),
      conditions=(*self.conditions, *self.scored),
      asks=(Question(text="held-out loss", better="lower", unit="bits per byte", role="loss"),),
    )

  def _unknown(self, flops: Mapping[str, float]) -> list[str]:
    """Names the models without a training to count."""
    left_out = [model for model, count in flops.items() if not count]
    if not left_out:
      return []
    return [f"Left out, because the FLOPs of imported weights are unknown: {', '.join(left_out)}."]

  def by_position(self) -> Figure:
    """Draws the loss by position, beyond the training length too."""
    drawn = []
    for model in self.runs.models:
      results = [one["by_position"] for one in self.of(model)]
      places = [(start + stop) / 2 for start, stop, _ in results[0]]
      losses = [interval([one[n][2] for one in results]) for n in range(len(places))]
      drawn.append(series(model, places, losses))
    last = results[0][-1][1]
    lowest = min(drawn, key=lambda one: one.y[-1])
    length = self.part.factor * self.part.length
    return Figure(
      name="loss_by_position",
      title="Loss by position",
      finding=f"Near position {last:,} the loss of {lowest.name} is lowest: {lowest.y[-1]:.3f}.",
      x=Axis(label="position in the document", log=True, marks=self._lengths()),
      y=Axis(label="held-out loss, nats per token"),
      series=tuple(drawn),
      spread=spread_text(len(self.runs.seeds)),
      conditions=(*self.conditions, ("scored rows", f"of {length:,} tokens")),
      asks=(Question(text=f"loss near position {last:,}", better="lower", unit="nats"),),
    )

  def _lengths(self) -> tuple[tuple[float, str], ...]:
    """Marks the lengths of the rows in training."""
    lengths = {self.of(model)[0]["length"]: None for model in self.runs.models}
    return tuple((length, f"trained on {length:,}") for length in sorted(lengths))

  def recorded(self) -> Figure | None:
    """Draws the held-out loss during training as the runs recorded it; None if none did."""
    curves = {model: self._recorded_of(model) for model in self.runs.models}
    curves = {model: curve for model, curve in curves.items() if curve}
    if not curves:
      return None
    return Figure(
      name="recorded_loss",
      title="Held-out loss during training",
      finding=" ".join([*self._says_recorded(curves), *self._says_left_out(curves)]),
      x=Axis(label="tokens trained on"),
      y=Axis(label="held-out loss as the run recorded it, nats per token"),
      series=tuple(
        series(model, list(curve), list(curve.values())) for model, curve in curves.items()
      ),
      spread=spread_text(len(self.runs.seeds)),
      conditions=self.conditions,
    )

  def _recorded_of(self, model: str) -> dict[int, Interval]:
    """Returns the recorded loss at the tokens at which every seed recorded one."""
    curves = [dict(map(tuple, one["recorded"])) for one in self.of(model)]
    places = sorted(set(curves[0]).intersection(*curves[1:]))
    return {place: interval([curve[place] for curve in curves]) for place in places}

  def _says_recorded(self, curves: Mapping[str, Mapping[int, Interval]]) -> list[str]:
    """Compares the curves at the last tokens that all recorded, for losses fall with tokens."""
    common = set.intersection(*(set(curve) for curve in curves.values()))
    ends = {model: max(curve) for model, curve in curves.items()}
    if len(curves) == 1 or not common:
      found = [
        f"{model} {curve[ends[model]].mean:.4f} after {ends[model]:,} tokens"
        for model, curve in curves.items()
      ]
      told = [f"The last recorded: {', '.join(found)}."]
      if len(curves) > 1:
        told.append("They recorded none after the same number of tokens, so none is lowest.")
      return told
    place = max(common)
    order = sorted(curves, key=lambda model: curves[model][place].mean)
    values = ", ".join(f"{model} {curves[model][place].mean:.4f}" for model in order)
    told = [f"After {place:,} tokens, from the lowest: {values}."]
    if any(end != place for end in ends.values()):
      each = ", ".join(f"{model} after {end:,}" for model, end in ends.items())
      told.append(f"The last were recorded at unequal tokens: {each}.")
    return told

  def _says_left_out(self, drawn: Collection[str]) -> list[str]:
    """Names the models without a curve, and why."""
    left_out = [
      f"{model} ({self._without_curve(model)})" for model in self.runs.models if model not in drawn
    ]
    return [f"Left out: {', '.join(left_out)}."] if left_out else []

  def _without_curve(self, model: str) -> str:
    results = self.of(model)
    if not all(one["tokens"] for one in results):
      return "imported weights: there is no record of their training"
    if not all(one["recorded"] for one in results):
      return "a run recorded no finite held-out loss"
    return "its seeds recorded none after the same number of tokens"


def _bits(part: Sequence[float]) -> float:
  """Returns bits per byte of nats, tokens and bytes."""
  return part[0] / math.log(2) / part[2]
