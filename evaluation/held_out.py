"""Scores a model on held-out rows: all together, and each component of a mixture by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from data import loader
from data.document_streams import DocumentStreams
from data.mixture import MixedRows
from data.row_halves import RowHalf
from data.rows import RowFiles
from evaluation.perplexity import Score, Scorer, total


def score(
  scorer: Scorer,
  params: Any,
  rows: RowFiles | MixedRows,
  batch_size: int,
  *,
  most_batches: int | None = None,
  carry: bool = False,
  report: Callable[[int, Score], None] | None = None,
) -> tuple[Score, dict[str, Score]]:
  """Scores rows once, in order; the components of a mixture one after another.

  Args:
    scorer: scores batches.
    params: the model's parameters.
    rows: the held-out rows.
    batch_size: rows of a batch.
    most_batches: about how many batches to read; a mixture's components share them by their sizes,
      and each has at least one.
    carry: read each document to its end, by states that go from row to row. Rows of a half are read
      alone: the rows between them are of the other half.
    report: called after every batch with the number of batches so far and their score.

  Returns:
    the score of all text, and that of each component of a mixture that has text, by name.

  Raises:
    ValueError: there is no text.
  """
  mixed = isinstance(rows, MixedRows)
  parts = dict(zip(rows.names, rows.parts, strict=True)) if mixed else {"": rows}
  wanted = batches_of(rows, batch_size, most_batches)
  scores: dict[str, Score] = {}
  done = 0
  for (name, part), count in zip(parts.items(), wanted, strict=True):
    for one in _each(scorer, params, part, batch_size, count, carry):
      scores[name] = scores[name] + one if name in scores else one
      done += 1
      if report and sum(other.bytes for other in scores.values()):
        report(done, total(scores.values()))
  whole = total(scores.values())
  return whole, {name: one for name, one in scores.items() if one.bytes} if mixed else {}


def _each(
  scorer: Scorer, params: Any, rows: RowFiles, batch_size: int, count: int, carry: bool
) -> Iterator[Score]:
  """Yields the scores of the first batches of a text."""
  if carry and not isinstance(rows, RowHalf):
    # Documents that go on behind their stretch take more batches than rows read alone.
    some = count if count < loader.steps_per_pass(rows, batch_size) else None
    yield from scorer.each_streamed(params, DocumentStreams(rows, batch_size), some)
    return
  batches = loader.batches(rows, batch_size, shuffle=False, repeat=False)
  yield from scorer.each(params, (next(batches) for _ in range(count)))
  batches.close()


def batches_of(
  rows: RowFiles | MixedRows, batch_size: int, most_batches: int | None = None
) -> list[int]:
  """Returns how many batches `score` reads of each component; of one if it is no mixture."""
  parts = rows.parts if isinstance(rows, MixedRows) else (rows,)
  counts = [loader.steps_per_pass(part, batch_size) for part in parts]
  every = sum(counts)
  if not most_batches or most_batches >= every:
    return counts
  return [max(1, round(most_batches * count / every)) for count in counts]
