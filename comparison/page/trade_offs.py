"""Figures of a page that set the models' losses against what their use costs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from comparison.page import verdict
from comparison.page.figure import ESTIMATED, MEASURED, Axis, Figure, Series
from comparison.page.verdict import Answer, Verdict, shown

# Of each figure, by its name.
Conditions = Mapping[str, tuple[tuple[str, str], ...]]
# Both answers of each model, the cost first.
Points = dict[str, tuple[Answer, Answer]]


def trade_offs(figures: Sequence[Figure], models: Sequence[str]) -> tuple[Figure, ...]:
  """Returns a figure for each pair of the first loss on a page and a cost.

  Args:
    figures: the figures of the page, whose questions have the roles 'loss' and 'cost'.
    models: the names of its models.
  """
  found = verdict.verdicts(figures, models)
  loss = next((one for one in found if one.question.role == "loss"), None)
  if loss is None:
    return ()
  costs = [one for one in found if one.question.role == "cost"]
  drawn = ((cost, _points(cost, loss, models)) for cost in costs)
  conditions = {figure.name: figure.conditions for figure in figures}
  return tuple(_figure(cost, loss, points, conditions) for cost, points in drawn if len(points) > 1)


def _points(cost: Verdict, loss: Verdict, models: Sequence[str]) -> Points:
  pairs = zip(models, cost.answers, loss.answers, strict=True)
  return {model: (x, y) for model, x, y in pairs if x is not None and y is not None and x.value > 0}


def _figure(cost: Verdict, loss: Verdict, points: Points, conditions: Conditions) -> Figure:
  """Draws a pair of questions; the page tells if they are of models of different sizes."""
  spread = all(y.ends is not None for _, y in points.values())
  return Figure(
    name="trade_off_" + re.sub(r"[^A-Za-z0-9]+", "_", cost.question.text).strip("_"),
    title=f"Held-out loss against {cost.question.text}",
    finding=_finding(cost, loss, points),
    x=Axis(label=_label(cost), log=True),
    y=Axis(label=_label(loss)),
    series=tuple(
      Series(
        name=model,
        x=(x.value,),
        y=(y.value,),
        low=(y.low,) if spread and y.low is not None else None,
        high=(y.high,) if spread and y.high is not None else None,
        kind=ESTIMATED if ESTIMATED in (x.kind, y.kind) else MEASURED,
      )
      for model, (x, y) in points.items()
    ),
    spread="that of the loss" if spread else "",
    conditions=(
      ("loss", f"{loss.question.text}: figure {loss.figure}"),
      *((f"loss, {name}", value) for name, value in conditions[loss.figure]),
      ("cost", f"{cost.question.text}: figure {cost.figure}"),
      *((f"cost, {name}", value) for name, value in conditions[cost.figure]),
    ),
  )


def _label(of: Verdict) -> str:
  unit = {"B": "bytes"}.get(of.question.unit, of.question.unit)
  return f"{of.question.text}, {unit}" if unit else of.question.text


def _finding(cost: Verdict, loss: Verdict, points: Points) -> str:
  """Names the models that no other is at least as good as in both, by the values drawn."""

  def beaten_by(model: str) -> list[str]:
    x, y = points[model]
    return [
      other
      for other, (cheap, low) in points.items()
      if other != model
      and (cheap.value <= x.value and low.value <= y.value)
      and (cheap.value < x.value or low.value < y.value)
    ]

  def told(model: str) -> str:
    x, y = points[model]
    units = cost.question.unit, loss.question.unit
    return f"{model} ({shown(y.value, units[1])}, {shown(x.value, units[0])})"

  beaten = {model: beaten_by(model) for model in points}
  best = ", ".join(told(model) for model, others in beaten.items() if not others)
  behind = [f"{told(model)} behind {' and '.join(o)}" for model, o in beaten.items() if o]
  return (
    ". ".join([f"No other is better in both: {best}", *([", ".join(behind)] if behind else [])])
    + "."
  )
