"""The table on top of a comparison's page: a row per question, and each model's answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape
from typing import Any

from comparison.page.figure import FITTED, MEASURED, Figure, Question, Series
from comparison.page.scale import show

# Significant digits of an answer; more where the ends of an interval would look alike.
_DIGITS, _MOST_DIGITS = 3, 6


@dataclasses.dataclass(frozen=True)
class Answer:
  """A model's answer to a question.

  Attributes:
    value: the value.
    low, high: its interval; None if there is none.
    kind: of the series: measured, or estimated.
  """

  value: float
  low: float | None
  high: float | None
  kind: str

  @property
  def ends(self) -> tuple[float, float] | None:
    """The interval; None if there is none."""
    return None if self.low is None or self.high is None else (self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A question with the answers of the models.

  Attributes:
    figure: name of the figure.
    question: the question.
    answers: an answer for each model; None for a model without.
  """

  figure: str
  question: Question
  answers: tuple[Answer | None, ...]

  @property
  def best(self) -> int | None:
    """Number of the model whose interval is better than those of all others; None if none is."""
    ends = [answer and answer.ends for answer in self.answers]
    known = [end for end in ends if end is not None]
    if len(known) < 2 or len(known) < sum(answer is not None for answer in self.answers):
      return None
    if self.question.better == "lower":
      first = min(known, key=lambda end: end[1])
      apart = all(first[1] < end[0] for end in known if end is not first)
    else:
      first = max(known, key=lambda end: end[0])
      apart = all(first[0] > end[1] for end in known if end is not first)
    return ends.index(first) if apart else None


def verdicts(figures: Sequence[Figure], models: Sequence[str]) -> list[Verdict]:
  """Returns a verdict for each question that a model answers."""
  found = []
  for figure in figures:
    for question in figure.asks:
      answers = tuple(_answer(figure, model, question.at) for model in models)
      if any(answer is not None for answer in answers):
        found.append(Verdict(figure.name, question, answers))
  return found


def _answer(figure: Figure, model: str, at: float | str | None) -> Answer | None:
  """The value of the model's series at a place."""
  named = [series for series in figure.series if series.name == model]
  # A value of a fit answers only where nothing is measured.
  own = min(named, key=lambda series: series.kind == FITTED, default=None)
  if own is None or not own.x or (at is not None and at not in own.x):
    return None
  return _point(own, len(own.x) - 1 if at is None else list[Any](own.x).index(at))


def _point(series: Series, index: int) -> Answer:
  low = None if series.low is None else series.low[index]
  high = None if series.high is None else series.high[index]
  return Answer(series.y[index], low, high, series.kind)


def table(figures: Sequence[Figure], models: Sequence[str]) -> str:
  """Formats the verdicts as an HTML table; '' without any."""
  found = verdicts(figures, models)
  if not found:
    return ""
  head = "".join(f"<th>{escape(model)}</th>" for model in models)
  rows = "".join(_row(verdict) for verdict in found)
  return (
    '<div class="scroll verdicts"><table><thead><tr><th>question</th>'
    f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    '<p class="conditions">Bold: the interval is better than those of all others. Intervals are '
    "those of the figures, each for itself: not corrected for the number of cells.</p>"
  )


def _row(verdict: Verdict) -> str:
  question, best, digits = verdict.question, verdict.best, _digits(verdict)
  cells = (
    _cell(answer, question.unit, digits, n == best) for n, answer in enumerate(verdict.answers)
  )
  return (
    f'<tr><td><a href="#{verdict.figure}">{escape(question.text)}</a>'
    f"<small>{question.better} is better</small></td>{''.join(cells)}</tr>"
  )


def _digits(verdict: Verdict) -> int:
  """Digits with which the ends of all intervals differ: answers that lie apart look so."""
  intervals = [answer.ends for answer in verdict.answers if answer is not None and answer.ends]
  unit = verdict.question.unit
  for digits in range(_DIGITS, _MOST_DIGITS):
    if all(
      low == high or shown(low, unit, digits) != shown(high, unit, digits)
      for low, high in intervals
    ):
      return digits
  return _MOST_DIGITS if intervals else _DIGITS


def _cell(answer: Answer | None, unit: str, digits: int, is_best: bool) -> str:
  if answer is None:
    return "<td></td>"
  text = escape(shown(answer.value, unit, digits))
  text = f"<strong>{text}</strong>" if is_best else text
  notes = []
  if answer.ends is not None:
    notes.append(" to ".join(shown(end, unit, digits) for end in answer.ends))
  if answer.kind != MEASURED:
    notes.append(answer.kind)
  small = f"<small>{escape(', '.join(notes))}</small>" if notes else ""
  return f"<td>{text}{small}</td>"


def shown(value: float, unit: str, digits: int = _DIGITS) -> str:
  """Formats a number as people read it: 60,300 tokens/s, 77 MB."""
  if unit == "B":
    for prefix in ("", "k", "M", "G", "T"):
      if abs(_rounded(value, digits)) < 1000 or prefix == "T":
        return f"{show(value, digits)} {prefix}B"
      value /= 1000
  return f"{show(_rounded(value, digits), digits)} {unit}".strip()


def _rounded(value: float, digits: int) -> float:
  return float(f"{value:.{digits}g}")
