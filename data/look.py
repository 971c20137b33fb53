"""A look at packed rows: some as text, and statistics."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from base.wording import plural
from data.mixture import MixedRows
from data.rows import RowFiles

# Statistics are of so many rows, evenly apart.
_SAMPLED_ROWS = 2000
_COLOURS = ("\033[36m", "\033[33m")
_PLAIN = "\033[0m"
_PERCENTILES = (5, 25, 50, 75, 95)


def segments(tokens: np.ndarray, segment_ids: np.ndarray) -> list[np.ndarray]:
  """Returns the tokens of each segment of a row.

  Args:
    tokens, segment_ids: [T] integers; segment id 0 is padding.
  """
  text = tokens[segment_ids > 0]
  cuts = np.flatnonzero(np.diff(segment_ids[segment_ids > 0])) + 1
  return [part for part in np.split(text, cuts) if len(part)]


def shown_row(rows: RowFiles, number: int, *, colour: bool) -> str:
  """Returns the text of a row, its documents in two colours or else with a line between them."""
  parts = segments(rows.tokens[number], rows.segment_ids[number])
  texts = [rows.tokenizer.decode(part) for part in parts]
  if not colour:
    return "\n-----\n".join(texts)
  colours = itertools.cycle(_COLOURS)
  return "".join(f"{next(colours)}{text}{_PLAIN}" for text in texts)


def statistics(rows: RowFiles | MixedRows) -> dict[str, Any]:
  """Returns what a data set has, as JSON values; of a mixture, each part's and its weight.

  Lengths of segments and frequent tokens are of a sample of the rows.
  """
  if isinstance(rows, MixedRows):
    parts = zip(rows.parts, rows.weights, strict=True)
    return {"parts": [{"weight": w} | statistics(part) for part, w in parts]}
  counts = rows.counts
  lengths: list[int] = []
  frequent = np.zeros(rows.tokenizer.size, np.int64)
  apart = max(1, len(rows) // _SAMPLED_ROWS)
  for number in range(0, len(rows), apart):
    found = segments(rows.tokens[number], rows.segment_ids[number])
    lengths += [len(part) for part in found]
    for part in found:
      frequent += np.bincount(part, minlength=len(frequent))
  top = np.argsort(-frequent, kind="stable")[:20]
  share = counts.padding_tokens / max(1, counts.padding_tokens + counts.tokens)
  return {
    "directory": str(rows.directory),
    "rows": len(rows),
    "sequence_length": rows.sequence_length,
    "shards": len(rows.manifest.shards),
    "tokens": counts.tokens,
    "documents": counts.documents,
    "empty_documents": counts.empty_documents,
    "invalid_utf8_documents": counts.invalid_utf8_documents,
    "text_bytes": counts.text_bytes,
    "bytes_per_token": round(rows.bytes_per_token, 4),
    "mean_document_tokens": round(counts.tokens / max(1, counts.documents), 1),
    "padding_share": round(share, 6),
    "segment_length_percentiles": {
      str(p): int(v)
      for p, v in zip(_PERCENTILES, np.percentile(lengths, _PERCENTILES), strict=True)
    },
    "frequent_tokens": [
      {"id": int(i), "text": rows.tokenizer.decode([int(i)]), "share": round(float(s), 5)}
      for i, s in zip(top, frequent[top] / max(1, frequent.sum()), strict=True)
      if s
    ],
  }


def described(values: dict[str, Any]) -> str:
  """Formats statistics as lines of text."""
  lengths = ", ".join(f"{p}%: {n}" for p, n in values["segment_length_percentiles"].items())
  tokens = "  ".join(f"{t['text']!r} {t['share']:.1%}" for t in values["frequent_tokens"][:10])
  return "\n".join(
    [
      f"{values['rows']:,} rows of {values['sequence_length']}, {values['tokens']:,} tokens of"
      f" {plural(values['documents'], 'document')}, {values['bytes_per_token']} bytes per token",
      f"padding: {values['padding_share']:.2%}",
      f"lengths of documents within a row: {lengths}",
      f"most frequent tokens: {tokens}",
    ]
  )
