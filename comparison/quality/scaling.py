"""Measures held-out loss by model size against a baseline (section 3.1 of the Griffin paper)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from comparison import measurement
from comparison.measurement import Cached, Runs, RunSpec
from comparison.page.figure import FITTED, Axis, Figure, Question
from comparison.page.scale import show
from comparison.statistics import (
  Claims,
  Interval,
  PowerLaw,
  interval,
  paired_difference,
  power_law,
  series,
  signed,
  spread_text,
)

_LOSS = "held-out loss, nats per token"
# Number of points of a drawn fit.
_FIT_POINTS = 25
# Models with at most this ratio of parameters count as equally large.
_ALIKE = 1.1
# Sizes with less than this ratio of FLOPs count as trained with equal FLOPs.
_APART = 1.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
  """Trains every model at every size, and fits power laws.

  Attributes:
    baseline: the model to compare the others with.
  """

  baseline: str

  def results(self, runs: Runs) -> dict[str, RunSpec]:
    """Returns a result for each training run, small sizes first.

    A model's seeds follow one another, so that they are compiled once.
    """
    measurement.require_model(self.baseline, runs.models)
    if len(runs.models) < 2:
      raise ValueError(f"there is no model but the baseline {self.baseline!r}. Add one.")
    specs = [
      RunSpec(model=model, size=size, seed=seed)
      for size in runs.sizes
      for model in runs.models
      for seed in runs.seeds
    ]
    return {str(spec): spec for spec in specs}

  def __call__(self, runs: Runs, cached: Cached) -> tuple[Figure, ...]:
    """Trains the models; returns the figures."""
    found = measurement.cached_by_run(self.results(runs), cached, lambda spec: _measure(runs, spec))
    ladder = _Ladder(runs, found)
    figures = [self._differences(ladder)]
    if len(runs.sizes) > 1:
      figures.append(self._fits(ladder, "flops", "Loss against training compute", "training FLOPs"))
      if (flops := ladder.equal_flops()) is not None:
        figures.append(self._at_equal_flops(ladder, flops))
      if len({ladder.value(self.baseline, size, "tokens") for size in runs.sizes}) > 1:
        figures.append(
          self._fits(ladder, "tokens", "Loss against training tokens", "training tokens")
        )
    if all(len(one["curve"]) > 2 for one in found.values()):
      figures.append(self._curves(ladder))
    return tuple(figures)

  def _differences(self, ladder: _Ladder) -> Figure:
    others = [model for model in ladder.models if model != self.baseline]
    differences = {
      (model, size): paired_difference(
        ladder.losses(model, size), ladder.losses(self.baseline, size)
      )
      for model in others
      for size in ladder.sizes
    }
    told = [
      self._says_by_size(model, {size: differences[model, size] for size in ladder.sizes})
      for model in others
    ]
    claims = Claims()
    for (model, size), difference in differences.items():
      claims.note(f"{model} minus {self.baseline} at {size}", difference)
    return Figure(
      name="scaling_difference",
      title=f"Held-out loss relative to {self.baseline} {ladder.budget()}",
      finding=" ".join([f"In nats per token: {'; '.join(told)}.", *ladder.unequal()]),
      x=Axis(label="size"),
      y=Axis(label=f"held-out loss minus that of {self.baseline}, nats per token"),
      series=tuple(
        series(model, ladder.sizes, [differences[model, size] for size in ladder.sizes])
        for model in others
      ),
      spread=f"{spread_text(len(ladder.seeds))}, paired by seed",
      conditions=ladder.conditions(self.baseline),
      source="section 3.1",
      differences=claims.noted,
    )

  def _says_by_size(self, model: str, differences: Mapping[str, Interval]) -> str:
    """Lists the sizes with a difference, and those without."""
    if not all(one.supports_claim for one in differences.values()):
      last = list(differences)[-1]
      value = signed(differences[last].mean)
      return f"{model} {value} at {last}, from too few seeds to claim a difference"
    clauses = []
    for word, sign in (("lower", -1), ("higher", 1)):
      seen = [
        f"{size} ({signed(one.mean)})"
        for size, one in differences.items()
        if one.excludes_zero and one.mean * sign > 0
      ]
      if seen:
        clauses.append(f"{word} at {', '.join(seen)}")
    unseen = [size for size, one in differences.items() if not one.excludes_zero]
    if unseen:
      clauses.append(f"no difference seen at {', '.join(unseen)}")
    return f"{model} against {self.baseline}: {', '.join(clauses)}"

  def _fits(self, ladder: _Ladder, what: str, title: str, label: str) -> Figure:
    drawn, laws = [], {}
    for model in ladder.models:
      x = [ladder.value(model, size, what) for size in ladder.sizes]
      losses = [ladder.losses(model, size) for size in ladder.sizes]
      laws[model] = power_law(x, np.transpose(losses))
      drawn.append(series(model, x, [interval(values) for values in losses]))
      places = np.geomspace(min(x), max(x), _FIT_POINTS).tolist()
      fitted = [laws[model].at(place) for place in places]
      drawn.append(series(f"{model}, power law", places, fitted, FITTED))
    claims = Claims()
    return Figure(
      name=f"scaling_{what}",
      title=title,
      finding=self._says_exponents(laws, label, claims),
      x=Axis(label=label, log=True),
      y=Axis(label=_LOSS, log=True),
      series=tuple(drawn),
      spread=spread_text(len(ladder.seeds)),
      conditions=ladder.conditions(self.baseline),
      source="section 3.1",
      differences=claims.noted,
    )

  def _at_equal_flops(self, ladder: _Ladder, flops: float) -> Figure:
    """Reads the power laws of all models at FLOPs within all that they were trained with."""
    losses = {}
    for model in ladder.models:
      points = zip(ladder.each_flops(model), ladder.each_losses(model), strict=True)
      losses[model] = [power_law(x, [y]).each_at(flops)[0] for x, y in points]
    claims = Claims()
    told = [
      claims.says_difference(
        model,
        self.baseline,
        paired_difference(values, losses[self.baseline]),
        lower="is below",
        higher="is above",
      )
      for model, values in losses.items()
      if model != self.baseline
    ]
    place = f"{show(flops, 3)} FLOPs"
    return Figure(
      name="scaling_equal_flops",
      title="Held-out loss at equal training FLOPs",
      finding=f"By the power laws at {place}, in nats per token: {'; '.join(told)}.",
      x=Axis(label="training FLOPs"),
      y=Axis(label=_LOSS),
      series=tuple(
        series(model, [place], [interval(values)], FITTED) for model, values in losses.items()
      ),
      spread=spread_text(len(ladder.seeds)),
      conditions=ladder.conditions(self.baseline),
      source="section 3.1",
      asks=(Question(text=f"held-out loss at {place}", better="lower", at=place, unit="nats"),),
      differences=claims.noted,
    )

  def _says_exponents(self, laws: Mapping[str, PowerLaw], label: str, claims: Claims) -> str:
    exponents = ", ".join(f"{model} {_exponent(law.exponent)}" for model, law in laws.items())
    base = laws[self.baseline].exponents
    steeper = [
      claims.says_difference(
        model,
        self.baseline,
        paired_difference(law.exponents, base),
        lower="falls more steeply than",
        higher="falls less steeply than",
        digits=4,
        of="exponents",
      )
      for model, law in laws.items()
      if model != self.baseline
    ]
    return _sentence(f"Exponents of {label}: {exponents}; {'; '.join(steeper)}")

  def _curves(self, ladder: _Ladder) -> Figure:
    size = ladder.sizes[-1]
    drawn, claims = [], Claims()
    for model in ladder.models:
      curves = ladder.of(model, size, "curve")
      tokens = [place for place, _ in curves[0]]
      at = [interval([dict(map(tuple, curve))[place] for curve in curves]) for place in tokens]
      drawn.append(series(model, tokens, at))
    # Models of another batch size are evaluated at other tokens, where losses do not compare.
    common = sorted(set.intersection(*(set(one.x) for one in drawn)))
    if not common:
      finding = "The models were evaluated after other numbers of tokens each: no loss compares"
    else:
      place = common[len(common) // 2]
      base = ladder.curve_at(self.baseline, size, place)
      differences = [
        claims.says_difference(
          model,
          self.baseline,
          paired_difference(ladder.curve_at(model, size, place), base),
          lower="is below",
          higher="is above",
        )
        for model in ladder.models
        if model != self.baseline
      ]
      finding = f"After {place:,.0f} tokens, in nats per token: {'; '.join(differences)}"
    return Figure(
      name="training_curves",
      title=f"Held-out loss during training, at {size}",
      finding=_sentence(finding),
      x=Axis(label="tokens trained on"),
      y=Axis(label=_LOSS),
      series=tuple(drawn),
      spread=spread_text(len(ladder.seeds)),
      conditions=ladder.conditions(self.baseline, [size]),
      source="section 3.1",
      differences=claims.noted,
      asks=(
        Question(
          text=f"held-out loss at {size}, {ladder.budget()}",
          better="lower",
          unit="nats",
          role="loss",
        ),
      ),
    )


@dataclasses.dataclass(frozen=True)
class _Ladder:
  """Results by run."""

  runs: Runs
  found: Mapping[RunSpec, Mapping[str, Any]]

  @property
  def models(self) -> tuple[str, ...]:
    return self.runs.models

  @property
  def sizes(self) -> tuple[str, ...]:
    return self.runs.sizes

  @property
  def seeds(self) -> tuple[int, ...]:
    return self.runs.seeds

  def of(self, model: str, size: str, what: str) -> list[Any]:
    """Returns one value per seed."""
    return [self.found[RunSpec(model=model, size=size, seed=seed)][what] for seed in self.seeds]

  def value(self, model: str, size: str, what: str) -> float:
    """Returns a value that is the same for every seed."""
    return self.of(model, size, what)[0]

  def losses(self, model: str, size: str) -> list[float]:
    """Returns the finished models' losses, one per seed."""
    return [curve[-1][1] for curve in self.of(model, size, "curve")]

  def each_flops(self, model: str) -> list[list[float]]:
    """Returns [S, N]: of each seed, the FLOPs by size; those of a loaded run may differ by seed."""
    return np.transpose([self.of(model, size, "flops") for size in self.sizes]).tolist()

  def each_losses(self, model: str) -> list[list[float]]:
    """Returns [S, N]: of each seed, the finished models' losses by size."""
    return np.transpose([self.losses(model, size) for size in self.sizes]).tolist()

  def equal_flops(self) -> float | None:
    """Returns the most FLOPs at which the power laws of all runs can be read.

    Returns:
      None if there are none within all runs, or where sizes have equal FLOPs (IsoFLOP profiles):
      then the loss does not follow from the FLOPs.
    """
    each = [sorted(flops) for model in self.models for flops in self.each_flops(model)]
    if any(more < _APART * less for one in each for less, more in itertools.pairwise(one)):
      return None
    most = min(one[-1] for one in each)
    return most if most >= max(one[0] for one in each) else None

  def curve_at(self, model: str, size: str, tokens: float) -> list[float]:
    """Returns the losses after so many tokens, one per seed."""
    return [dict(map(tuple, curve))[tokens] for curve in self.of(model, size, "curve")]

  def tokens(self, size: str) -> dict[str, list[int]]:
    """Returns the training tokens of each model; those of a loaded run may differ by seed."""
    return {model: sorted(set(self.of(model, size, "tokens"))) for model in self.models}

  def parameters(self, size: str) -> dict[str, list[int]]:
    """Returns the parameters of each model; those of a loaded run may differ by seed."""
    return {model: sorted(set(self.of(model, size, "parameters"))) for model in self.models}

  def unequal(self) -> list[str]:
    """Returns a sentence for each size at which the models are not alike in size or budget."""
    told = []
    for size in self.sizes:
      counts = self.parameters(size)
      every = list(itertools.chain.from_iterable(counts.values()))
      if max(every) > _ALIKE * min(every):
        told.append(f"At {size} the parameters differ: {_counts(counts)}.")
    return [*told, *self.unequal_tokens()]

  def budget(self) -> str:
    """Tells in a title whether the models of each size had the same training tokens."""
    return "at unequal tokens" if self.unequal_tokens() else "at equal tokens"

  def unequal_tokens(self) -> list[str]:
    """Returns a sentence for each size with unequal training tokens."""
    return [
      f"At {size} the tokens differ: {_counts(self.tokens(size))}."
      for size in self.sizes
      if len(set(itertools.chain.from_iterable(self.tokens(size).values()))) > 1
    ]

  def conditions(
    self, baseline: str, sizes: list[str] | None = None
  ) -> tuple[tuple[str, str], ...]:
    """Returns parameters and tokens by size, and the seeds."""
    named = []
    for size in sizes or self.sizes:
      counts = self.parameters(size)
      base = counts[baseline][0]
      others = ", ".join(
        f"{model} {' or '.join(f'{signed(100 * (count / base - 1), 1)}%' for count in of_model)}"
        for model, of_model in counts.items()
        if model != baseline
      )
      shown = _counts({"": counts[baseline]})
      tokens = self.tokens(size)
      if len({tuple(of_model) for of_model in tokens.values()}) == 1:
        tokens = {"": tokens[baseline]}
      named.append((f"{size}:", f"{shown} parameters ({others}), {_counts(tokens)} tokens"))
    return (*named, ("seeds", ", ".join(map(str, self.seeds))))


def _counts(numbers: Mapping[str, list[int]]) -> str:
  """Formats numbers by model; those of several seeds joined by 'or'."""
  return ", ".join(
    f"{model} {' or '.join(f'{count:,}' for count in counts)}".strip()
    for model, counts in numbers.items()
  )


def _measure(runs: Runs, spec: RunSpec) -> dict[str, Any]:
  trained = runs.train(spec)
  return {
    "parameters": trained.parameters,
    "flops": trained.flops,
    "tokens": trained.tokens,
    "curve": [[tokens, loss] for tokens, loss in trained.curve.items()],
  }


def _exponent(value: Interval) -> str:
  if value.count < 2:
    return signed(value.mean)
  return f"{signed(value.mean)} ({signed(value.low)} to {signed(value.high)})"


def _sentence(text: str) -> str:
  return text + "."
