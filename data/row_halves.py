"""Divides held-out rows into two halves: one to choose by, and one for the figures."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np

from data.rows import RowFileError, RowFiles

# What chooses (a learning rate, say), and what is shown of the choice.
HALVES = ("validation", "test")

# The rows are cut into so many stripes, which go to the halves in turn. So each half has text from
# everywhere, few documents lie in both, and rows of any length have about the same text.
_STRIPES = 32


class RowHalf(RowFiles):
  """Half of the rows of a directory; otherwise like `RowFiles`.

  The rows come from all stripes in turn, so that the first few are of all kinds of text.
  `counts`, `bytes_per_token` and the checks are those of the whole directory.
  """

  def __init__(self, whole: RowFiles, half: str):
    """Chooses the rows of a half, 'validation' or 'test'.

    Raises:
      RowFileError: there are too few rows for two halves.
    """
    self.half = half
    self.directory, self.manifest = whole.directory, whole.manifest
    self._whole = whole
    self._rows = _places(len(whole), HALVES.index(half))
    if not self._rows.size:
      raise RowFileError(
        f"{whole.directory} has {len(whole)} held-out rows of {whole.sequence_length} tokens: too "
        "few to choose by one half and to test on the other. Hold out more text, or take shorter "
        "rows."
      )
    self.tokens = _Picked(whole.tokens, self._rows)
    self.segment_ids = _Picked(whole.segment_ids, self._rows)
    self.row_bytes = _Picked(whole.row_bytes, self._rows)
    masked = whole.loss_mask is not None
    self.loss_mask = _Picked(whole.loss_mask, self._rows) if masked else None

  def __len__(self) -> int:
    return len(self._rows)

  def follows(self, row: int) -> bool:
    """Whether the text of a row comes right behind that of the row before."""
    return row > 0 and bool(self._rows[row] == self._rows[row - 1] + 1)

  def text_bytes(self, rows: int | None = None) -> int:
    """Returns the bytes of text in the loss in the first `rows` rows (all by default)."""
    return int(self.row_bytes[:rows].sum(dtype=np.int64))

  @functools.cached_property
  def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
    """Identifies the content: equal fingerprints mean equal batches."""
    return hashlib.sha256(f"{self._whole.fingerprint} {self.half}".encode()).hexdigest()[:16]

  def check_rows(self, first: int = 0, count: int | None = None) -> None:
    """Checks the ids of all rows of the directory; see `RowFiles.check_rows`."""
    del first, count
    self._whole.check_rows()


class _Picked:
  """Some rows of an array, read when they are asked for."""

  def __init__(self, array: Any, rows: np.ndarray):
    self._array, self._rows = array, rows

  def __len__(self) -> int:
    return len(self._rows)

  @property
  def dtype(self) -> np.dtype:
    return self._array.dtype

  @property
  def shape(self) -> tuple[int, ...]:
    return (len(self._rows), *self._array.shape[1:])

  def __getitem__(self, key: int | slice) -> np.ndarray:
    if isinstance(key, slice):
      chosen = [np.asarray(self._array[int(row)]) for row in self._rows[key]]
      return np.stack(chosen) if chosen else np.empty((0, *self.shape[1:]), self.dtype)
    return self._array[int(self._rows[key])]


def _places(count: int, half: int) -> np.ndarray:
  """Returns the rows, out of `count`, of half 0 or 1: the first of each stripe, the second, ..."""
  rows = np.arange(count)
  # By a row's middle: rows of another length then lie in the stripe of the same text. Rows that are
  # longer than a stripe go to the halves in turn.
  stripes = (2 * rows + 1) * min(_STRIPES, count) // (2 * max(count, 1))
  within = rows - np.searchsorted(stripes, stripes)
  order = np.lexsort((stripes, within))
  return order[stripes[order] % 2 == half]
