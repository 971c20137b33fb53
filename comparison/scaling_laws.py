"""Fits scaling laws to trained runs: loss by parameters and tokens, and the best size by FLOPs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, special

from base.wording import plural
from comparison.statistics import CONFIDENCE, Interval

# Of the Huber loss of logarithms (Hoffmann et al. 2022, appendix D.3).
_DELTA = 1e-3
# Runs whose FLOPs differ by at most this ratio are of one budget.
_EQUAL_FLOPS = 1.08
# A fit has five numbers, and more runs tell whether it is right.
LEAST_RUNS = 6
# FLOPs per parameter and token if none are given (Kaplan et al. 2020).
FLOPS_PER_PARAMETER = 6.0


class TooFewRuns(ValueError):
  """The runs do not determine a law."""


@dataclasses.dataclass(frozen=True)
class Trained:
  """What trained runs have reached: arrays with a value per run.

  Attributes:
    parameters: [R] parameters N.
    tokens: [R] training tokens D.
    losses: [R] held-out loss, nats per token.
    flops: [R] FLOPs of each training.
  """

  parameters: np.ndarray
  tokens: np.ndarray
  losses: np.ndarray
  flops: np.ndarray

  def of(self, which: np.ndarray) -> Trained:
    """Returns the runs at these indices."""
    return Trained(
      self.parameters[which], self.tokens[which], self.losses[which], self.flops[which]
    )

  @property
  def flops_per_parameter(self) -> float:
    """FLOPs per parameter and token: the runs' median."""
    return float(np.median(self.flops / (self.parameters * self.tokens)))


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
  """L(N, D) = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, equation 2).

  Attributes:
    e: loss that no size or data removes, E.
    log_a, alpha: ln A and the exponent of the parameters.
    log_b, beta: ln B and the exponent of the tokens.
  """

  e: float
  log_a: float
  alpha: float
  log_b: float
  beta: float

  def loss(self, parameters: float | np.ndarray, tokens: float | np.ndarray) -> np.ndarray:
    """Returns the loss at N and D."""
    return (
      self.e
      + np.exp(self.log_a - self.alpha * np.log(parameters))
      + np.exp(self.log_b - self.beta * np.log(tokens))
    )

  def optimum(self, flops: float, per_token: float = FLOPS_PER_PARAMETER) -> tuple[float, float]:
    """Returns the N and D of lowest loss whose training takes `flops` = per_token N D.

    Hoffmann et al. 2022, equation 4. Neither is below one, where the FLOPs allow it: a fit whose
    exponents are near zero has its optimum anywhere, beyond what a number can be.
    """
    product, total = math.log(flops / per_token), self.alpha + self.beta
    ratio = (self.log_a - self.log_b + math.log(self.alpha / self.beta)) / total
    parameters = ratio + self.beta / total * product
    parameters = min(max(parameters, min(0.0, product)), max(0.0, product))
    return math.exp(parameters), math.exp(product - parameters)

  @property
  def optimal_exponent(self) -> float:
    """The exponent a of the best size: N is proportional to FLOPs^a."""
    return self.beta / (self.alpha + self.beta)


@dataclasses.dataclass(frozen=True)
class FittedLaw:
  """A law with those of resampled runs.

  Attributes:
    law: the fit to all runs.
    resampled: fits to runs drawn with replacement.
    lowest: the lowest loss of the runs.
  """

  law: ScalingLaw
  resampled: tuple[ScalingLaw, ...]
  lowest: float

  def interval(self, of: Callable[[ScalingLaw], float]) -> Interval:
    """Returns a value of the law with its percentile interval over the resampled fits."""
    values = [of(law) for law in self.resampled]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(of(self.law), float(low), float(high), len(values))

  @property
  def tells_constant(self) -> bool:
    """Whether E is known to a tenth of the lowest loss: exponents mean little if it is not."""
    found = self.interval(lambda law: law.e)
    return found.high - found.low <= 0.1 * self.lowest


def fit(runs: Trained, *, resamples: int = 200, seed: int = 0) -> FittedLaw:
  """Fits the law by Huber loss of log losses, from many starts, and to resampled runs.

  Args:
    runs: the runs.
    resamples: number of bootstrap samples over runs.
    seed: seed of the resampling.

  Raises:
    TooFewRuns: there are too few runs, or sizes or tokens do not vary by themselves.
  """
  count = len(runs.losses)
  if count < LEAST_RUNS:
    raise TooFewRuns(
      f"{plural(count, 'run')} cannot determine a law of five numbers; {LEAST_RUNS} may."
    )
  logs = np.stack([np.log(runs.parameters), np.log(runs.tokens)])
  if min(np.ptp(logs, axis=1)) < 1e-6:
    raise TooFewRuns("all runs have the same parameters, or the same tokens. Vary both.")
  if np.ptp(logs[0] - logs[1]) < 1e-2:
    raise TooFewRuns(
      "tokens are proportional to parameters in all runs, so that no fit can tell one from the "
      "other. Train some sizes on other numbers of tokens."
    )
  best = _minimized(runs, _starts(runs))
  random = np.random.default_rng(seed)
  drawn = [runs.of(random.integers(count, size=count)) for _ in range(resamples)]
  resampled = [_minimized(sample, best[None]) for sample in drawn]
  return FittedLaw(_law(best), tuple(map(_law, resampled)), float(runs.losses.min()))


def _law(x: np.ndarray) -> ScalingLaw:
  log_a, alpha, log_b, beta, log_e = map(float, x)
  return ScalingLaw(math.exp(log_e), log_a, alpha, log_b, beta)


def _objective(x: np.ndarray, runs: Trained) -> tuple[np.ndarray, np.ndarray]:
  """The mean Huber loss of log losses at x [..., 5], and its gradient."""
  x = np.expand_dims(x, -2)
  n, d = np.log(runs.parameters), np.log(runs.tokens)
  terms = np.stack(
    [x[..., 0] - x[..., 1] * n, x[..., 2] - x[..., 3] * d, x[..., 4] + 0.0 * n], axis=-1
  )
  predicted = np.asarray(special.logsumexp(terms, axis=-1))
  off = predicted - np.log(runs.losses)
  slope = np.clip(off / _DELTA, -1, 1)
  value = np.where(np.abs(off) <= _DELTA, 0.5 * off**2 / _DELTA, np.abs(off) - 0.5 * _DELTA)
  share = np.exp(terms - np.expand_dims(predicted, -1)) * slope[..., None]
  gradient = np.stack(
    [share[..., 0], -n * share[..., 0], share[..., 1], -d * share[..., 1], share[..., 2]], axis=-1
  )
  return value.mean(axis=-1), gradient.mean(axis=-2)


def _starts(runs: Trained, count: int = 6) -> np.ndarray:
  """Returns the best points of a grid over exponents, constant and shares of the two terms."""
  n, d = float(np.log(runs.parameters).mean()), float(np.log(runs.tokens).mean())
  low, high = float(runs.losses.min()), float(runs.losses.max())
  points = []
  for alpha, beta, constant, share in itertools.product(
    (0.1, 0.2, 0.35, 0.5, 0.8), (0.1, 0.2, 0.35, 0.5, 0.8), (0.2, 0.5, 0.8, 0.95), (0.2, 0.5, 0.8)
  ):
    rest = 0.5 * (low + high) - constant * low
    log_a = math.log(share * rest) + alpha * n
    log_b = math.log((1 - share) * rest) + beta * d
    points.append([log_a, alpha, log_b, beta, math.log(constant * low)])
  grid = np.array(points)
  return grid[np.argsort(_objective(grid, runs)[0])[:count]]


def _minimized(runs: Trained, starts: np.ndarray) -> np.ndarray:
  # Exponents are positive; the constant is below every loss that was reached.
  bounds = [(None, None), (1e-3, 3), (None, None), (1e-3, 3), (-20, math.log(runs.losses.min()))]
  found = [
    optimize.minimize(
      _objective,
      np.clip(start, [-np.inf if b[0] is None else b[0] for b in bounds], _upper(bounds)),
      args=(runs,),
      jac=True,
      bounds=bounds,
      method="L-BFGS-B",
      options={"maxiter": 500, "ftol": 1e-13, "gtol": 1e-10},
    )
    for start in starts
  ]
  return min(found, key=lambda one: one.fun).x


def _upper(bounds: Sequence[tuple[float | None, float | None]]) -> list[float]:
  return [np.inf if high is None else high for _, high in bounds]


@dataclasses.dataclass(frozen=True)
class Profile:
  """Runs of equal FLOPs, and the size of lowest loss among them.

  Attributes:
    flops: their FLOPs, the geometric mean.
    parameters, losses: of the runs, by parameters.
    curve: coefficients of the parabola through log parameters, highest first.
    optimum: parameters at its lowest point; None if that is at an edge, or there is none.
  """

  flops: float
  parameters: tuple[float, ...]
  losses: tuple[float, ...]
  curve: tuple[float, float, float]
  optimum: float | None


def profiles(runs: Trained) -> list[Profile]:
  """Returns the IsoFLOP profiles (Hoffmann et al. 2022, approach 2), from few FLOPs to many.

  A profile has at least four sizes.
  """
  order = np.argsort(runs.flops, kind="stable")
  groups: list[list[int]] = []
  for index in order:
    if groups and runs.flops[index] <= _EQUAL_FLOPS * runs.flops[groups[-1][0]]:
      groups[-1].append(int(index))
    else:
      groups.append([int(index)])
  found = []
  for group in groups:
    which = np.array(sorted(group, key=lambda n: runs.parameters[n]))
    sizes = np.log(runs.parameters[which])
    if len(np.unique(sizes)) < 4:
      continue
    curve = np.polyfit(sizes, runs.losses[which], 2)
    lowest = -curve[1] / (2 * curve[0]) if curve[0] > 0 else math.inf
    inside = sizes[0] < lowest < sizes[-1]
    found.append(
      Profile(
        flops=float(np.exp(np.log(runs.flops[which]).mean())),
        parameters=tuple(runs.parameters[which].tolist()),
        losses=tuple(runs.losses[which].tolist()),
        curve=(float(curve[0]), float(curve[1]), float(curve[2])),
        optimum=math.exp(lowest) if inside else None,
      )
    )
  return found


def profile_exponent(found: Sequence[Profile]) -> float | None:
  """Returns a of N = k FLOPs^a through the profiles' optima; None with fewer than two."""
  known = [(math.log(p.flops), math.log(p.optimum)) for p in found if p.optimum is not None]
  if len(known) < 2:
    return None
  x, y = np.array(known).T
  return float(np.polyfit(x, y, 1)[0])
