"""The differences of all figures of a page, corrected together for their number."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape

from comparison.page.figure import Difference, Figure
from comparison.page.scale import show

# A difference is seen if its corrected p value is below.
LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Corrected:
  """A difference with its p value among all of the page.

  Attributes:
    figure: the figure that tests it.
    difference: the difference.
    p: its p value, corrected.
  """

  figure: Figure
  difference: Difference
  p: float

  @property
  def seen(self) -> str:
    """Whether the difference is seen: together with all others, alone, or not."""
    if self.p < LEVEL:
      return "yes"
    return "only without correction" if self.difference.p < LEVEL else "no"


def holm(p_values: Sequence[float]) -> list[float]:
  """Corrects p values of several tests together (Holm 1979).

  Among all true hypotheses of no difference, the probability that any is rejected stays at most the
  level, however the tests depend on each other.

  Returns:
    the corrected p values, in the order given.
  """
  order = sorted(range(len(p_values)), key=lambda n: p_values[n])
  corrected, least = [0.0] * len(p_values), 0.0
  for rank, n in enumerate(order):
    least = max(least, min(1.0, (len(order) - rank) * p_values[n]))
    corrected[n] = least
  return corrected


def corrected(figures: Sequence[Figure]) -> list[Corrected]:
  """Corrects the differences of all figures together."""
  tested = [(figure, difference) for figure in figures for difference in figure.differences]
  values = holm([difference.p for _, difference in tested])
  return [
    Corrected(figure, difference, p) for (figure, difference), p in zip(tested, values, strict=True)
  ]


def says(found: Sequence[Corrected]) -> str:
  """Says in a sentence how many differences are seen."""
  alone = sum(one.seen != "no" for one in found)
  together = sum(one.seen == "yes" for one in found)
  return (
    f"{len(found)} differences are tested on this page: {alone} are seen each on its own, "
    f"{together} if all are corrected together (Holm)."
  )


def table(figures: Sequence[Figure]) -> str:
  """Formats all differences as a folded HTML table, those seen first; '' without any."""
  found = sorted(corrected(figures), key=lambda one: one.difference.p)
  if not found:
    return ""
  rows = "".join(map(_row, found))
  return (
    f"<details><summary>{escape(says(found))}</summary>"
    '<div class="scroll corrections"><table><thead><tr><th>difference</th><th>value</th>'
    f"<th>p</th><th>p, corrected</th><th>seen</th></tr></thead><tbody>{rows}</tbody></table></div>"
    '<p class="conditions">p values are of Student\'s t test, two-sided. Intervals on this page '
    "and the sentences of figures are not corrected, and medians of timings, which have no p "
    "value, are not in this table.</p></details>"
  )


def _row(one: Corrected) -> str:
  difference = one.difference
  ends = f"{show(difference.low)} to {show(difference.high)}"
  return (
    f'<tr><td><a href="#{one.figure.name}">{escape(one.figure.title)}</a>'
    f"<small>{escape(difference.text)}</small></td>"
    f"<td>{show(difference.value)}<small>{ends}</small></td>"
    f"<td>{_p(difference.p)}</td><td>{_p(one.p)}</td><td>{one.seen}</td></tr>"
  )


def _p(value: float) -> str:
  return "&lt; 0.001" if value < 0.001 else f"{value:.2g}"
