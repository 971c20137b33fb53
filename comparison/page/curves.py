"""A page with the curves of runs, one over the other, and a table of what the runs are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from comparison.page.figure import Axis, Figure, Series
from comparison.page.report import document, figure_element
from comparison.page.scale import show
from experiment.run_list import Run, differences

# Lines of metrics of which the table shows the median speed.
_RATES = 5
# Points of a curve; of more, each point is the mean of several.
_MOST_POINTS = 200
# Name in the metrics, title, label of the y axis.
_CURVES = (
  ("heldout_bits_per_byte", "Held-out loss", "bits per byte"),
  ("bits_per_byte", "Training loss", "bits per byte"),
  ("heldout_loss", "Held-out loss of tasks without text", "nats per token"),
  ("loss", "Training loss of tasks without text", "nats per token"),
  ("tokens_per_second", "Speed", "tokens per second"),
  ("step_seconds", "Step time", "seconds, median of a line"),
  ("mfu", "MFU", "share of the peak FLOP/s"),
  ("goodput", "Goodput", "share of the wall time"),
)
# Drawn only for runs without these.
_WITHOUT_TEXT = {"heldout_loss": "heldout_bits_per_byte", "loss": "bits_per_byte"}


def page(
  runs: Sequence[Run],
  title: str,
  made: str,
  findings: Sequence[Figure] = (),
  says: Sequence[str] = (),
) -> str:
  """Formats the page: a self-contained HTML file without scripts.

  Args:
    runs: the runs.
    title: title of the page.
    made: time of writing.
    findings: figures to show before the curves.
    says: sentences for the top of the page.
  """
  names = [run.name for run in runs]
  figures = [figure for curve in _CURVES if (figure := _figure(runs, *curve))]
  body = "".join(figure_element(figure, names, "") for figure in (*findings, *figures))
  table = f"<section><h2>Runs</h2>{_table(runs)}</section>"
  drawn = f'<section><h2>Curves</h2><div class="figures">{body}</div></section>' if body else ""
  count = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
  top = f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in says)}</ul>" if says else ""
  return document(title, f"{count}; {made}.", top, f"{table}{drawn}")


def _figure(runs: Sequence[Run], name: str, title: str, label: str) -> Figure | None:
  """Makes the figure of one curve of each run that has it; None if none has."""
  of = [run for run in runs if name not in _WITHOUT_TEXT or not run.curve(_WITHOUT_TEXT[name])]
  curves = {run.name: _thinned(curve) for run in of if (curve := run.curve(name))}
  if not curves:
    return None
  last = {run.name: value for run in of if (value := run.last(name)) is not None}
  low, high = (pick(last, key=lambda run: last[run]) for pick in (min, max))
  finding = f"Last: {show(last[low])} ({low})"
  if low != high:
    finding += f" to {show(last[high])} ({high})"
  return Figure(
    name=name,
    title=title,
    finding=f"{finding}.",
    x=Axis(label="step"),
    y=Axis(label=label),
    series=tuple(
      Series(name=run, x=tuple(x for x, _ in curve), y=tuple(y for _, y in curve))
      for run, curve in curves.items()
    ),
  )


def _thinned(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  """Returns at most `_MOST_POINTS` points, each the mean of several and at the last's step."""
  each = -(-len(curve) // _MOST_POINTS)
  groups = [curve[start : start + each] for start in range(0, len(curve), each)]
  return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _table(runs: Sequence[Run]) -> str:
  different = differences(runs)
  columns = ("run", "state", "step", "bits per byte", "held out", "tokens/s", *different)
  head = "".join(f"<th>{escape(column)}</th>" for column in columns)
  rows = []
  for number, run in enumerate(runs):
    cells = [*row(run), *(texts[number] for texts in different.values())]
    rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
  body = "".join(f"<tr>{cells}</tr>" for cells in rows)
  return (
    f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
  )


def row(run: Run) -> tuple[str, ...]:
  """Formats name, state, step, losses and speed of a run."""
  steps = str(run.step) if run.steps is None else f"{run.step}/{run.steps}"
  # Not that of the last line, which may have a single step.
  rates = [rate for _, rate in run.curve("tokens_per_second")[-_RATES:]]
  rate = statistics.median_high(rates) if rates else None
  losses = [run.last(name) for name in ("bits_per_byte", "heldout_bits_per_byte")]
  return (
    run.name,
    run.state,
    steps,
    *("-" if loss is None else f"{loss:.4f}" for loss in losses),
    "-" if rate is None else f"{rate:,.0f}",
  )
