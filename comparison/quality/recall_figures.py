"""What figures of recall share, whoever trained the models: questions, right answers by length and
by kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from comparison.page.figure import Axis, Figure
from comparison.statistics import (
  Interval,
  interval,
  paired_difference,
  says_difference,
  series,
  spread_text,
)
from data.recall import RecallTask
from evaluation.recall import Recalled

KINDS = {
  "distance": "tokens between an answer and what it repeats",
  "depth": "place in the context of what is asked for, from 0 to 1",
  "position": "place in the answer",
}

# Of each model, what was measured with each seed.
Found = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
  """What models are asked, and what is drawn of their answers.

  Attributes:
    task: at its own length.
    lengths: contexts that are asked about, rising.
    kind: what failures are told apart by: a key of `KINDS`.
    count: examples asked per length.
    baseline: the model that the others are compared with.
    seeds: of the models.
    conditions: of the figures.
    source: of the experiment, in the paper.
  """

  task: RecallTask
  lengths: Sequence[int]
  kind: str
  count: int
  baseline: str
  seeds: Sequence[int]
  conditions: tuple[tuple[str, str], ...] = ()
  source: str = "section 6.2, appendix H"

  def __post_init__(self):
    if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
      raise ValueError(f"lengths={tuple(self.lengths)} must rise, and hold at least one.")
    if self.kind not in KINDS:
      raise ValueError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}.")
    if self.count < 1 or not self.seeds:
      raise ValueError(f"questions={self.count} and seeds={self.seeds}: give at least one.")

  @property
  def title(self) -> str:
    """The task's name, at the beginning of a sentence."""
    return self.task.name.replace("-", " ").capitalize()

  def answers(self, recalled: Sequence[Recalled], told: Recalled) -> dict[str, Any]:
    """As JSON values: accuracies by length, and apart by kind.

    Args:
      recalled: what was given at each of the lengths.
      told: the answers that are told apart by kind.
    """
    return {
      "lengths": [one.accuracy for one in recalled],
      "exact": [one.exact for one in recalled],
      "kinds": [[share.start, share.correct, share.count] for share in told.by(self.kind)],
    }

  def figure(self, name: str, **parts: Any) -> Figure:
    """A figure with what all of them say of the task."""
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
      source=self.source,
      **parts,
    )

  def by_length(self, found: Found, trained: int | None = None) -> Figure:
    """Right answers against the length of the context.

    Args:
      found: of each model, what `answers` gave for each seed.
      trained: the length that models were trained at, one of the lengths; None if at none of them.
    """
    unit, last = self.task.unit, len(self.lengths) - 1
    first = self.lengths.index(trained) if trained in self.lengths else 0

    def at(name: str, place: int) -> list[float]:
      return [run["lengths"][place] for run in found[name]]

    def told(place: int) -> str:
      shares = ", ".join(f"{name} {np.mean(at(name, place)):.0%}" for name in found)
      return f"{shares} at {self.lengths[place]:,} {unit}"

    shares = {name: at(name, last) for name in found}
    differences = self.differences(shares, lower="is below", higher="is above")
    places = sorted({first, min(first + 1, last), last})
    return self.figure(
      "by_length",
      title=f"{self.title}: right answers against the length of the context",
      finding=f"Right answers: {'; '.join(map(told, places))}; there {differences}.",
      x=Axis(label=f"context, {unit}", log=True),
      y=Axis(label="share of right answer tokens"),
      series=tuple(
        series(name, self.lengths, [share(at(name, n)) for n in range(len(self.lengths))])
        for name in found
      ),
    )

  def by_kind(self, found: Found) -> Figure:
    """Right answers apart by distance, depth or place in the answer."""

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
      # A distance is at least 1; other kinds begin at 0, which a logarithmic axis does not have.
      x=Axis(label=KINDS[self.kind], log=self.kind == "distance"),
      y=Axis(label="share of right answer tokens"),
      series=tuple(series(name, *values(name)) for name in found),
    )

  def differences(self, shares: Mapping[str, list[float]], *, lower: str, higher: str) -> str:
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


def share(values: Sequence[float]) -> Interval:
  """The interval of a share, which is no less than 0 and no more than 1."""
  found = interval(values)
  return dataclasses.replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
