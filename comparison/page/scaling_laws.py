"""Figures of scaling laws: profiles of equal FLOPs, and the best size by FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from comparison.page.figure import FITTED, Axis, Figure, Series
from comparison.scaling_laws import FittedLaw, Profile
from comparison.statistics import CONFIDENCE, series

_POINTS = 25
# Each value of the law, with the name that tables show.
VALUES = {
  "E": lambda law: law.e,
  "A": lambda law: float(np.exp(law.log_a)),
  "alpha": lambda law: law.alpha,
  "B": lambda law: float(np.exp(law.log_b)),
  "beta": lambda law: law.beta,
  "a": lambda law: law.optimal_exponent,
}


def says_constant(model: str, fitted: FittedLaw) -> str:
  """Warns if the runs cannot tell the constant; '' if they can."""
  if fitted.tells_constant:
    return ""
  found = fitted.interval(VALUES["E"])
  return (
    f"the runs of {model} do not tell E: it may be {found.low:.3g} to {found.high:.3g}, with the "
    f"lowest loss at {fitted.lowest:.3g}. Its exponents hold between these runs alone; larger "
    "sizes and more tokens would tell more."
  )


def figures(
  laws: Mapping[str, FittedLaw],
  profiles: Mapping[str, Sequence[Profile]],
  budgets: Sequence[float],
  per_token: Mapping[str, float],
) -> tuple[Figure, ...]:
  """Draws the laws of models, by name.

  Args:
    laws: the fitted laws.
    profiles: the IsoFLOP profiles, where there are any.
    budgets: FLOPs from which and to which the optimum is drawn.
    per_token: FLOPs per parameter and token.
  """
  places = np.geomspace(min(budgets), max(budgets), _POINTS).tolist()
  drawn, told = [], []
  for model, fitted in laws.items():
    sizes = [
      fitted.interval(lambda law, c=flops, model=model: law.optimum(c, per_token[model])[0])
      for flops in places
    ]
    drawn.append(series(model, places, sizes, FITTED))
    known = [p for p in profiles.get(model, ()) if p.optimum is not None]
    if known:
      x, y = [p.flops for p in known], [p.optimum or 0.0 for p in known]
      drawn.append(_points_of(f"{model}, profiles", x, y))
    a = fitted.interval(VALUES["a"])
    told.append(f"{model} {a.mean:.3f} ({a.low:.3f} to {a.high:.3f})")
  first = Figure(
    name="best_size",
    title="Parameters of lowest loss against training compute",
    finding=f"The best size grows with FLOPs to the power of: {'; '.join(told)}.",
    x=Axis(label="training FLOPs", log=True),
    y=Axis(label="parameters", log=True),
    series=tuple(drawn),
    spread=f"{CONFIDENCE:.0%} interval over runs drawn with replacement",
    source="Hoffmann et al. 2022, approaches 2 and 3",
  )
  return (first, *(_profile_figure(m, found) for m, found in profiles.items() if found))


def _profile_figure(model: str, found: Sequence[Profile]) -> Figure:
  drawn = [_points_of(f"{p.flops:.2g} FLOPs", p.parameters, p.losses) for p in found]
  inside = sum(profile.optimum is not None for profile in found)
  return Figure(
    name=f"isoflop_{''.join(c if c.isalnum() else '_' for c in model)}",
    title=f"Loss against parameters at equal FLOPs: {model}",
    finding=(
      f"{inside} of {len(found)} budgets have their lowest loss between the smallest and the "
      "largest size."
    ),
    x=Axis(label="parameters", log=True),
    y=Axis(label="held-out loss, nats per token"),
    series=tuple(drawn),
    source="Hoffmann et al. 2022, approach 2",
  )


def _points_of(name: str, x: Sequence[float], y: Sequence[float]) -> Series:
  return Series(name=name, x=tuple(x), y=tuple(y))
