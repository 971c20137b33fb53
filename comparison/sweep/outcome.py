"""What a sweep found: a table of its runs, the best first, and a page with their curves."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from base.wording import plural
from comparison.page.figure import Axis, Figure, Series
from comparison.page.scale import show
from comparison.statistics import interval
from comparison.sweep.cells import Cell, Range, SweptAxis
from experiment import run_list
from experiment.run_list import Run

# Held-out losses by preference: bits per byte compare runs with different tokenizers too.
_LOSSES = (("heldout_bits_per_byte", "bits per byte"), ("heldout_loss", "nats per token"))
# A macro or parameter of this name makes repeats, over which losses are averaged.
_SEEDS = ("SEED", "seed")
_LOG_FROM = 8.0  # ratio of the largest to the smallest value above which an axis is logarithmic
NOT_STARTED = "not started"
FAILED = "failed"


@dataclasses.dataclass(frozen=True)
class Found:
  """A cell and what its run has reached.

  Attributes:
    cell: the cell.
    run: its run directory; None if it has not started.
    loss: the last held-out loss; None before the first evaluation.
    failed: why it cannot continue; None if it can.
  """

  cell: Cell
  run: Run | None
  loss: float | None
  failed: str | None

  @property
  def state(self) -> str:
    """The state of the run in a word or two."""
    if self.failed is not None:
      return FAILED
    return self.run.state if self.run else NOT_STARTED


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The cells of a sweep with their losses.

  Attributes:
    found: the cells in the order of the sweep.
    axes: the axes.
    unit: unit of the losses.
  """

  found: tuple[Found, ...]
  axes: tuple[SweptAxis, ...]
  unit: str

  @property
  def ranked(self) -> list[Found]:
    """The cells with the lowest loss first, and those without one last, in their order."""
    return sorted(self.found, key=lambda f: math.inf if f.loss is None or f.failed else f.loss)

  @property
  def best(self) -> Found | None:
    """The finished run with the lowest loss; None if none is finished."""
    done = [f for f in self.ranked if f.state == run_list.FINISHED and f.loss is not None]
    return done[0] if done else None

  def rows(self) -> list[tuple[str, ...]]:
    """Formats a table: state, step, held-out loss, and the value of each axis."""
    head = ("state", "step", "held out", *(axis.name for axis in self.axes))
    rows = []
    for found in self.ranked:
      run = found.run
      step = "-" if run is None else f"{run.step}/{run.steps or '?'}"
      loss = "-" if found.loss is None else f"{found.loss:.4f}"
      rows.append((found.state, step, loss, *(text for _, text in found.cell.choices)))
    return [head, *rows]

  def says(self) -> list[str]:
    """Tells the best run, averages over seeds, and optima at the edge of an axis."""
    best = self.best
    if best is None:
      return ["no run is finished yet"]
    lines = [f"best: {show(best.loss or 0.0)} {self.unit} held out, with {best.cell}"]
    lines += self._means()
    for axis in self.axes:
      numbers = axis.numbers
      if numbers is None or len(numbers) < 2 or _is_seed(axis.name):
        continue
      chosen = numbers[dict(best.cell.choices)[axis.name]]
      for end, where in ((min(numbers.values()), "smallest"), (max(numbers.values()), "largest")):
        if chosen == end:
          lines.append(
            f"{axis.name}={chosen:g} is the {where} that was tried: the optimum may lie beyond it"
          )
    return lines

  def _means(self) -> list[str]:
    """Tells the choice with the lowest mean over seeds, and its interval."""
    if not any(_is_seed(axis.name) for axis in self.axes):
      return []
    groups: dict[tuple[tuple[str, str], ...], list[float]] = defaultdict(list)
    for found in self.found:
      if found.state == run_list.FINISHED and found.loss is not None:
        key = tuple(choice for choice in found.cell.choices if not _is_seed(choice[0]))
        groups[key].append(found.loss)
    most = max(map(len, groups.values()))
    # A mean of fewer seeds is another quantity.
    whole = {key: interval(losses) for key, losses in groups.items() if len(losses) == most}
    key = min(whole, key=lambda k: whole[k].mean)
    mean = whole[key]
    text = f"lowest mean over {plural(most, 'seed')}: {show(mean.mean)}"
    if most > 1:
      text += f" (95% interval {show(mean.low)} to {show(mean.high)})"
    return [f"{text}, with {Cell(key)}" if key else text]

  def figures(self) -> list[Figure]:
    """Draws the final losses against each axis with numbers; a line joins the lowest ones."""
    return [figure for axis in self.axes if (figure := self._figure(axis)) is not None]

  def _figure(self, axis: SweptAxis) -> Figure | None:
    points: dict[float, list[float]] = defaultdict(list)
    for found in self.found:
      if found.state != run_list.FINISHED or found.loss is None:
        continue
      try:
        points[float(dict(found.cell.choices)[axis.name])].append(found.loss)
      except ValueError:
        return None
    if len(points) < 2 or _is_seed(axis.name):
      return None
    places = sorted(points)
    lowest = [min(points[x]) for x in places]
    series = [Series(name="lowest loss", x=tuple(places), y=tuple(lowest))]
    others = [(x, y) for x in places for y in sorted(points[x])[1:]]
    if others and not isinstance(axis.values, Range):
      highest = [max(points[x]) for x in places]
      series.append(Series(name="highest loss", x=tuple(places), y=tuple(highest)))
    at = places[lowest.index(min(lowest))]
    return Figure(
      name=f"over_{re.sub(r'[^A-Za-z0-9_]', '_', axis.name)}",
      title=f"Held-out loss by {axis.name}",
      finding=f"Lowest: {show(min(lowest))} at {show(at)}.",
      x=Axis(label=axis.name, log=places[0] > 0 and places[-1] / places[0] >= _LOG_FROM),
      y=Axis(label=self.unit),
      series=tuple(series),
    )


def of(
  cells: Sequence[Cell], axes: Sequence[SweptAxis], runs: Sequence[Run], failed: Mapping[str, str]
) -> Outcome:
  """Finds the runs of the cells.

  Args:
    cells: the cells.
    axes: their axes.
    runs: the runs in the sweep's folder.
    failed: why runs cannot continue, by the name of their folder.
  """
  # Not by the folder's own name, which a copy deeper in the sweep's folder has too.
  by_name = {run.name: run for run in runs}
  mine = [by_name.get(cell.folder) for cell in cells]
  name, unit = next(
    (loss for loss in _LOSSES if any(run and run.last(loss[0]) is not None for run in mine)),
    _LOSSES[0],
  )
  found = (
    Found(cell, run, run.last(name) if run else None, failed.get(cell.folder))
    for cell, run in zip(cells, mine, strict=True)
  )
  return Outcome(tuple(found), tuple(axes), unit)


def _is_seed(name: str) -> bool:
  return name.rpartition(".")[2] in _SEEDS
