"""Shared figures of recall: right answers by length and by kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from comparison.page.figure import Axis, Figure, Question
from comparison.statistics import (
  Claims,
  Interval,
  interval,
  paired_difference,
  series,
  spread_text,
)
from data.recall import RecallTask
from evaluation.recall import Recalled

KINDS = {
  "distance": "tokens between an answer and its source",
  "depth": "position of the source in the context, from 0 to 1",
  "position": "position in the answer",
}

# The results of each model, one per seed.
Found = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
  """Questions of a recall task, and the figures of the answers.

  Attributes:
    task: the task.
    lengths: context lengths to score, ascending.
    kind: how to group answers: a key of `KINDS`.
    count: number of examples per length.
    baseline: the model to compare the others with.
    seeds: seeds of the models.
    conditions: conditions of the figures.
  """

  task: RecallTask
  lengths: Sequence[int]
  kind: str
  count: int
  baseline: str
  seeds: Sequence[int]
  conditions: tuple[tuple[str, str], ...] = ()

  def __post_init__(self):
    if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
      raise ValueError(f"lengths={tuple(self.lengths)} must be ascending and not empty.")
    if self.kind not in KINDS:
      raise ValueError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}.")
    if self.count < 1 or not self.seeds:
      raise ValueError(f"questions={self.count} and seeds={self.seeds}: give at least one.")

  @property
  def title(self) -> str:
    """The task's name with a capital letter."""
    return self.task.name.replace("-", " ").capitalize()

  def answers(self, recalled: Sequence[Recalled], told: Recalled) -> dict[str, Any]:
    """Returns accuracies by length and by kind, as JSON values.

    Args:
      recalled: the answers at each of the lengths.
      told: the answers to group by kind.
    """
    return {
      "lengths": [one.accuracy for one in recalled],
      "exact": [one.exact for one in recalled],
      "kinds": [[share.start, share.correct, share.count] for share in told.by(self.kind)],
    }

  def figure(self, name: str, **parts: Any) -> Figure:
    """Makes a figure with the conditions of the task."""
    fields = self.task.describe()
    hidden = ("corpus", "revision", "examples", "heldout_examples", "seed", "length")
    options = {key: value for key, value in fields.items() if key not in hidden}
    return Figure(
      name=f"{self.task.name.replace('-', '_')}_{name}",
      spread=spread_text(len(self.seeds)),
      conditions=(
        (
          "task",
          ", ".join([self.task.name, *(f"{key} {value}" for key, value in options.items())]),
        ),
        *self.conditions,
        ("questions", f"{self.count:,} per length and seed"),
        ("seeds", ", ".join(map(str, self.seeds))),
      ),
      source=self.task.published,
      **parts,
    )

  def by_length(self, found: Found, trained: int | None = None) -> Figure:
    """Plots right answers against the context length.

    Args:
      found: results of `answers` by model, one per seed.
      trained: the training length if it is one of the lengths; else None.
    """
    unit, last = self.task.unit, len(self.lengths) - 1
    first = self.lengths.index(trained) if trained in self.lengths else 0

    def at(name: str, place: int) -> list[float]:
      return [run["lengths"][place] for run in found[name]]

    def told(place: int) -> str:
      shares = ", ".join(f"{name} {np.mean(at(name, place)):.0%}" for name in found)
      return f"{shares} at {self.lengths[place]:,} {unit}"

    shares = {name: at(name, last) for name in found}
    claims = Claims()
    differences = self.differences(claims, shares, lower="is below", higher="is above")
    places = sorted({first, min(first + 1, last), last})
    return self.figure(
      "by_length",
      title=f"{self.title}: right answers against context length",
      finding=f"Right answers: {'; '.join(map(told, places))}; "
      f"at {self.lengths[last]:,} {unit}, {differences}.",
      x=Axis(label=f"context, {unit}", log=True),
      y=Axis(label="share of right answer tokens"),
      series=tuple(
        series(name, self.lengths, [share(at(name, n)) for n in range(len(self.lengths))])
        for name in found
      ),
      asks=tuple(
        Question(
          text=f"{self.title}: right answers at {self.lengths[place]:,} {unit}",
          better="higher",
          at=self.lengths[place],
        )
        for place in sorted({first, last})
      ),
      differences=claims.noted,
    )

  def by_kind(self, found: Found) -> Figure:
    """Plots right answers by distance, depth or position in the answer."""

    def values(name: str) -> tuple[list[float], list[Interval]]:
      shares: dict[float, list[float]] = {}
      for run in found[name]:
        for start, correct, _ in run["kinds"]:
          shares.setdefault(start, []).append(correct)
      everywhere = {start: all_ for start, all_ in shares.items() if len(all_) == len(found[name])}
      return list(everywhere), [share(all_) for all_ in everywhere.values()]

    def worst(name: str) -> str:
      starts, shares = values(name)
      place = int(np.argmin([one.mean for one in shares]))
      return f"{name} is worst ({shares[place].mean:.0%}) at {starts[place]:g}"

    return self.figure(
      f"by_{self.kind}",
      title=f"{self.title}: where answers fail",
      finding=f"By {KINDS[self.kind]}: {'; '.join(map(worst, found))}.",
      # Distances are at least 1; other kinds start at 0, which a logarithmic axis lacks.
      x=Axis(label=KINDS[self.kind], log=self.kind == "distance"),
      y=Axis(label="share of right answer tokens"),
      series=tuple(series(name, *values(name)) for name in found),
    )

  def differences(
    self, claims: Claims, shares: Mapping[str, list[float]], *, lower: str, higher: str
  ) -> str:
    """Describes the difference of each model's shares, one per seed, from the baseline's."""
    return "; ".join(
      claims.says_difference(
        name,
        self.baseline,
        paired_difference(values, shares[self.baseline]),
        lower=lower,
        higher=higher,
        digits=2,
      )
      for name, values in shares.items()
      if name != self.baseline
    )


def share(values: Sequence[float]) -> Interval:
  """Returns the interval of a share, clipped to [0, 1]."""
  found = interval(values)
  return dataclasses.replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
