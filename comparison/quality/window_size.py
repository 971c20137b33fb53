"""Measures the loss by window of local attention (appendix E of the Griffin paper)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from base.ranges import Count
from comparison import measurement
from comparison.measurement import Cached, Runs, RunSpec
from comparison.page.figure import Axis, Figure
from comparison.statistics import (
  Claims,
  interval,
  paired_difference,
  series,
  spread_text,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowSize:
  """Trains a model with several windows, and a baseline without a window.

  Attributes:
    size: the comparison's size to train.
    model: the model with the varied window.
    windows: windows in tokens, from small to large.
    baseline: a model without a window, drawn as a horizontal line.
    length: tokens per row; None is the configuration's.
  """

  size: str
  model: str
  windows: Sequence[Count]
  baseline: str
  length: Count | None = None

  def __post_init__(self):
    if len(self.windows) < 2 or list(self.windows) != sorted(set(self.windows)):
      raise ValueError(f"windows={self.windows} must be ascending, with at least two.")

  def results(self, runs: Runs) -> dict[str, RunSpec]:
    """Returns a result for each run."""
    for name in (self.model, self.baseline):
      measurement.require_model(name, runs.models)
    measurement.require_size(self.size, runs.sizes, "WINDOW_SIZE_SIZE")
    specs = [self._spec(seed, window) for window in (None, *self.windows) for seed in runs.seeds]
    return {str(spec): spec for spec in specs}

  def __call__(self, runs: Runs, cached: Cached) -> tuple[Figure, ...]:
    """Trains the models; returns the figures."""
    found = measurement.cached_by_run(self.results(runs), cached, lambda spec: _measure(runs, spec))

    def losses(window: int | None) -> list[float]:
      return [found[self._spec(seed, window)]["loss"] for seed in runs.seeds]

    baseline = losses(None)
    best = min(self.windows, key=lambda window: sum(losses(window)))
    small, large = self.windows[0], self.windows[-1]
    tokens = found[self._spec(runs.seeds[0], None)]["tokens"]
    claims = Claims()
    told = [
      claims.says_difference(
        f"a window of {large:,}",
        f"one of {small:,}",
        paired_difference(losses(large), losses(small)),
        lower="has a lower loss than",
        higher="has a higher loss than",
      ),
      claims.says_difference(
        f"{self.model} with its best window ({best:,})",
        self.baseline,
        paired_difference(losses(best), baseline),
        lower="has a lower loss than",
        higher="has a higher loss than",
      ),
    ]
    return (
      Figure(
        name="window_size",
        title=f"Loss of {self.model} against the window of its local attention",
        finding=f"In nats per token: {'; '.join(told)}.",
        x=Axis(label="window, tokens", log=True),
        y=Axis(label="held-out loss, nats per token"),
        series=(
          series(self.model, self.windows, [interval(losses(window)) for window in self.windows]),
          series(
            f"{self.baseline}, global attention",
            (small, large),
            [interval(baseline)] * 2,
          ),
        ),
        spread=spread_text(len(runs.seeds)),
        conditions=(
          ("size", f"{self.size} ({tokens:,} training tokens)"),
          ("training length", f"{found[self._spec(runs.seeds[0], None)]['length']:,}"),
          ("seeds", ", ".join(map(str, runs.seeds))),
        ),
        source="appendix E",
        differences=claims.noted,
      ),
    )

  def _spec(self, seed: int, window: int | None) -> RunSpec:
    """Returns the run of the model with a window, or that of the baseline for None."""
    model = self.baseline if window is None else self.model
    return RunSpec(model=model, size=self.size, seed=seed, length=self.length, window=window)


def _measure(runs: Runs, spec: RunSpec) -> dict[str, Any]:
  trained = runs.train(spec)
  loss = trained.curve[max(trained.curve)]
  return {"loss": loss, "tokens": trained.tokens, "length": trained.length}
