"""Finds the settings at which each model of each size trains best, on text that no figure shows."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from base.errors import UserError
from base.ranges import Positive, Seed, Share
from comparison.measurement import Cached, Runs, RunSpec
from comparison.page.figure import Axis, Figure, Question, Series
from comparison.quality.rate_search import behind_edge, require_grid
from training.record import TrainingError

RATE = "LEARNING_RATE"
# Settings within this many nats per token of the best are as good as it.
_AS_GOOD = 0.01

# Values by macro, such as (('LEARNING_RATE', 0.004),).
Setting = tuple[tuple[str, Any], ...]
# Held-out loss of the tried settings after the same share of the steps; infinite if one diverged.
Round = Mapping[Setting, float]


class NoSetting(UserError):
  """Every setting of a search diverged."""


@dataclasses.dataclass(frozen=True)
class Tuned:
  """What was found for a model of a size.

  Attributes:
    rounds: losses of the settings that were tried in each round, on the validation half.
    best: the chosen setting.
    flops: FLOPs of all trainings of the search.
  """

  rounds: tuple[Round, ...]
  best: Setting
  flops: float

  def by_rate(self) -> dict[float, float]:
    """Returns the lowest loss at each rate of the first round, ascending; without diverged ones."""
    found: dict[float, float] = {}
    for setting, loss in self.rounds[0].items():
      rate = dict(setting)[RATE]
      found[rate] = min(loss, found.get(rate, math.inf))
    return {rate: found[rate] for rate in sorted(found) if math.isfinite(found[rate])}

  def rise_beside(self) -> float | None:
    """Returns how much higher the loss is at the worse of the rates beside the first round's best.

    None if a rate beside it diverged, or one of the two was not tried: of one side alone the rise
    would look smaller.
    """
    best_at: dict[float, float] = {}
    for setting, loss in self.rounds[0].items():
      rate = dict(setting)[RATE]
      best_at[rate] = min(loss, best_at.get(rate, math.inf))
    losses = [best_at[rate] for rate in sorted(best_at)]
    place = losses.index(min(losses))
    if not 0 < place < len(losses) - 1:
      return None
    rise = max(losses[place - 1], losses[place + 1]) - losses[place]
    return rise if math.isfinite(rise) else None

  @property
  def is_at_edge(self) -> bool:
    """Whether the chosen rate is the smallest or the largest that was tried."""
    tried = [dict(setting)[RATE] for setting in self.rounds[0]]
    return dict(self.best)[RATE] in (min(tried), max(tried))

  def says(self, name: str) -> str:
    """Tells the choice in words, and between which rates the first round saw no difference."""
    chosen = dict(self.best)
    losses = self.by_rate()
    enough = min(losses.values()) + _AS_GOOD
    alike = [rate for rate, loss in losses.items() if loss <= enough]
    others = "".join(f", {macro} {value}" for macro, value in chosen.items() if macro != RATE)
    told = f"{name} {chosen[RATE]:g}{others}"
    if len(alike) > 1:
      told += f" ({alike[0]:g} to {alike[-1]:g} within {_AS_GOOD:g} nats)"
    return f"{told}, the edge of the grid" if self.is_at_edge else told


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
  """Searches each model's settings at each size, by successive halving, before seeds are trained.

  All settings are trained for the first share of the steps, with warm-up and decay shortened alike;
  the better half of them for the next share, and so on. The best of the last round is chosen. If
  the best rate of the first round is at an edge of the grid, the rate behind it is tried too, once.
  So every model has the same number of trainings, but for those rates.

  Attributes:
    rates: peak learning rates, ascending, at least two.
    validation: choices, gin files or macros, of the text to choose by.
    test: choices of the text that all figures are of.
    others: further macros with the values to try, all combined with each other and the rates.
    shares: share of the configuration's steps in each round, ascending.
    seed: seed of the search; another than those of the figures.
  """

  rates: Sequence[Positive]
  validation: Sequence[str]
  test: Sequence[str]
  others: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
  shares: Sequence[Share] = (0.25, 0.5)
  seed: Seed = 100

  def __post_init__(self):
    require_grid(self.rates)
    if not self.shares or list(self.shares) != sorted(set(self.shares)) or self.shares[0] <= 0:
      raise ValueError(f"shares={tuple(self.shares)} must be ascending, above 0 and at most 1.")
    for macro, values in self.others.items():
      if macro == RATE or not values:
        raise ValueError(f"others[{macro!r}] must name another macro than {RATE}, with values.")
    if list(self.validation) == list(self.test):
      raise ValueError("validation and test name the same text: choose by one, show the other.")

  def results(self, runs: Runs) -> dict[str, RunSpec]:
    """Returns a result for each training of the first round."""
    return {
      _key(model, size, setting, self.shares[0]): self._spec(model, size, setting, self.shares[0])
      for size in runs.sizes
      for model in runs.models
      for setting in self._settings(self.rates)
    }

  def possible(self, runs: Runs) -> dict[str, RunSpec]:
    """Returns a result for each training that may be made."""
    edges = [behind_edge(self.rates, rate) for rate in (self.rates[0], self.rates[-1])]
    rates = [*self.rates, *(rate for rate in edges if rate is not None)]
    return {
      _key(model, size, setting, share): self._spec(model, size, setting, share)
      for size in runs.sizes
      for model in runs.models
      for setting in self._settings(rates)
      for share in self.shares
    }

  def tuned(self, model: str, size: str, runs: Runs, cached: Cached) -> Tuned:
    """Searches the setting of a model of a size.

    Raises:
      NoSetting: every setting diverged.
    """
    rounds: list[Round] = []
    flops = 0.0

    def tried(
      settings: Iterator[Setting] | Sequence[Setting], share: float
    ) -> dict[Setting, float]:
      nonlocal flops
      losses = {}
      for setting in settings:
        spec = self._spec(model, size, setting, share)
        key = _key(model, size, setting, share)
        found = cached(key, lambda spec=spec: _measured(runs, spec))
        losses[setting] = math.inf if found["loss"] is None else found["loss"]
        flops += found["flops"]
      return losses

    left: Sequence[Setting] = tuple(self._settings(self.rates))
    for share in self.shares:
      losses = tried(left, share)
      # Rounded up. The rate behind an edge adds no training to the next round.
      stay = (len(left) + 1) // 2
      if not rounds:
        best = min(losses, key=losses.__getitem__)
        further = behind_edge(self.rates, dict(best)[RATE])
        if further is not None and math.isfinite(losses[best]):
          losses |= tried([tuple((dict(best) | {RATE: further}).items())], share)
      rounds.append(losses)
      ranked = sorted(losses, key=losses.__getitem__)
      left = ranked[:stay]
      if len(left) == 1:
        break
    if not math.isfinite(rounds[-1][left[0]]):
      raise NoSetting(
        f"{model}, {size}: every learning rate of {', '.join(f'{rate:g}' for rate in self.rates)} "
        "ended in values that are not finite. Give smaller ones: --gin.RATES='(1e-4, 1e-3)'."
      )
    return Tuned(tuple(rounds), left[0], flops)

  def __call__(self, runs: Runs, cached: Cached) -> tuple[Figure, ...]:
    """Searches the settings of all models; returns a figure for each size, and one of all."""
    found = {
      size: {model: self.tuned(model, size, runs, cached) for model in runs.models}
      for size in runs.sizes
    }
    figures = [self._figure(size, of_size) for size, of_size in found.items()]
    return (*figures, *self._sensitivity(found))

  def _settings(self, rates: Sequence[float]) -> Iterator[Setting]:
    for values in itertools.product(rates, *self.others.values()):
      yield tuple(zip((RATE, *self.others), values, strict=True))

  def _spec(self, model: str, size: str, setting: Setting, share: float) -> RunSpec:
    choices = (*self.validation, *written(setting))
    return RunSpec(model=model, size=size, seed=self.seed, choices=choices, trial=share)

  def _sensitivity(self, found: Mapping[str, Mapping[str, Tuned]]) -> list[Figure]:
    """Draws what the rates beside the best one cost; none where none of them is known."""
    rises: dict[str, dict[str, float]] = {}
    for size, of_size in found.items():
      for model, tuned in of_size.items():
        rise = tuned.rise_beside()
        if rise is not None:
          rises.setdefault(model, {})[size] = rise
    if not rises:
      return []
    last = list(found)[-1]
    told = [f"{model} {one[last]:.3f}" for model, one in rises.items() if last in one]
    left_out = [model for model in found[last] if last not in rises.get(model, {})]
    finding = f"At {last} the loss rises by, in nats per token: {', '.join(told)}." if told else ""
    if left_out:
      finding += f" A rate beside the best one diverged, or was not tried: {', '.join(left_out)}."
    return [
      Figure(
        name="rate_sensitivity",
        title="Rise of the loss at the worse of the two rates beside the best",
        finding=finding.strip(),
        x=Axis(label="size"),
        y=Axis(label=f"rise of the loss after {self.shares[0]:.0%} of the steps, nats per token"),
        series=tuple(
          Series(name=model, x=tuple(one), y=tuple(one.values())) for model, one in rises.items()
        ),
        conditions=(
          ("rates", ", ".join(f"{rate:g}" for rate in self.rates)),
          ("search", f"seed {self.seed}, one training each: its spread is unknown"),
        ),
        asks=(
          Question(
            text=f"rate sensitivity: rise of the loss at the next learning rate, at {last}",
            better="lower",
            at=last,
            unit="nats",
          ),
        ),
      )
    ]

  def _figure(self, size: str, found: Mapping[str, Tuned]) -> Figure:
    told = "; ".join(tuned.says(name) for name, tuned in found.items())
    least, most = (edge(tuned.flops for tuned in found.values()) for edge in (min, max))
    counted = ", ".join(f"{name} {sum(map(len, one.rounds))}" for name, one in found.items())
    return Figure(
      name=f"learning_rates_{''.join(c if c.isalnum() else '_' for c in size)}",
      title=f"Held-out loss against the learning rate, at {size}",
      finding=f"Chosen peak learning rates, by the validation half: {told}.",
      x=Axis(label="peak learning rate", log=True),
      y=Axis(label=f"held-out loss after {self.shares[0]:.0%} of the steps, nats per token"),
      series=tuple(
        Series(name=name, x=tuple(tuned.by_rate()), y=tuple(tuned.by_rate().values()))
        for name, tuned in found.items()
      ),
      conditions=(
        (
          "search",
          f"seed {self.seed}, one training each; {counted} "
          f"trainings of {' and then '.join(f'{part:.0%}' for part in self.shares)} of the steps, "
          "the better half of the settings after each; the rate behind an edge is tried once",
        ),
        ("search FLOPs", f"{least:.3g} to {most:.3g} for each model"),
        ("text", "validation half of the held-out rows; all other figures are of the test half"),
      ),
    )


def written(setting: Setting) -> tuple[str, ...]:
  """Returns a setting as choices of a comparison."""
  return tuple(f"{macro} = {value!r}" for macro, value in setting)


def _key(model: str, size: str, setting: Setting, share: float) -> str:
  told = ", ".join(
    f"{'learning rate' if macro == RATE else macro} "
    f"{f'{value:g}' if isinstance(value, float) else value}"
    for macro, value in setting
  )
  return f"{model}, {size}, {told}, {100 * share:.6g}% of the steps"


def _measured(runs: Runs, spec: RunSpec) -> dict[str, Any]:
  """Trains a setting; one that ends in values that are not finite has no loss."""
  try:
    trained = runs.train(spec)
  except TrainingError:
    # It took computation too, and its share of the steps was its budget.
    return {"loss": None, "flops": runs.flops(spec)}
  *_, loss = trained.curve.values()
  return {"loss": loss if math.isfinite(loss) else None, "flops": trained.flops}
