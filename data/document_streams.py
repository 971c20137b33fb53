"""Reads each document of a text from its start to its end, once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data.lanes import token_before
from data.loader import batch_of_rows
from data.rows import RowFiles, wrong_ids


class DocumentStreams:
  """Batches of rows in which row b of one goes on where row b of the one before ended.

  The text is cut into one stretch of rows per row of a batch. A document is read, and scored, by
  the lane in whose stretch it begins: that lane goes on into the next stretch, whose own lane
  leaves the document out. `len` is the number of batches.
  """

  def __init__(self, rows: RowFiles, batch_size: int):
    """Sets the rows, and the number of rows of a batch."""
    self._rows = rows
    self._stretch = -(-len(rows) // batch_size)
    self._spans = [self._span(lane) for lane in range(batch_size)]

  def _ends_before(self, row: int) -> int:
    """Returns the first row, from this one on, that is not all of a document begun before it."""
    while (
      row < len(self._rows)
      and token_before(self._rows, row) >= 0
      and self._rows.segment_ids[row][-1] == 1
    ):
      row += 1
    return row

  def _span(self, lane: int) -> tuple[int, int, int]:
    """Returns a lane's first row, the end of its stretch, and the end of what it reads."""
    first = min(lane * self._stretch, len(self._rows))
    stop = min(first + self._stretch, len(self._rows))
    begins = min(self._ends_before(first), stop)
    if begins == stop:
      return stop, stop, stop
    last = self._ends_before(stop)
    # The document may end within a row that others begin in.
    last += last < len(self._rows) and token_before(self._rows, last) >= 0
    return begins, stop, last

  def __len__(self) -> int:
    return max(last - first for first, _, last in self._spans)

  @property
  def batch_size(self) -> int:
    """Rows of a batch."""
    return len(self._spans)

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    """Yields `data.loader.batch_of_rows` of lanes, with two more arrays.

    `row_bytes` [B] int64: bytes of the text that the lane scores; where two lanes score parts of a
    row, each has the share of its tokens, so that the first batches alone have the bytes of their
    tokens. `places` [B, T] int64: the position of each token in its document, where `positions`
    count from the row's start.

    Raises:
      RowFileError: a row has an id outside its vocabulary, or invalid segments.
    """
    shape = self.batch_size, self._rows.sequence_length
    told = np.zeros(self.batch_size, np.int64)  # tokens of the documents that go on
    for step in range(len(self)):
      tokens, ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
      mask, before = np.zeros(shape, bool), np.full(self.batch_size, -1)
      row_bytes = np.zeros(self.batch_size, np.int64)
      for lane, (first, stop, last) in enumerate(self._spans):
        row = first + step
        if row >= last:
          continue
        tokens[lane], ids[lane] = self._rows.tokens[row], self._rows.segment_ids[row]
        written = self._rows.loss_mask
        mask[lane] = ids[lane] > 0 if written is None else written[row] > 0
        entering = token_before(self._rows, row)
        text = int(self._rows.row_bytes[row])
        # Rows that are all of one document are left out by their own lane.
        is_whole = row < self._spans[row // self._stretch][0]
        counted, first_document = mask[lane].sum(), mask[lane] & (ids[lane] == 1)
        going_on = text if is_whole else text * int(first_document.sum()) // max(int(counted), 1)
        row_bytes[lane] = text
        if row >= stop:  # only what goes on from the stretch
          mask[lane], row_bytes[lane] = first_document, going_on
        if step:
          before[lane] = entering
        elif entering >= 0:  # the lane before has it
          mask[lane] &= ids[lane] != 1
          row_bytes[lane] = text - going_on
      if wrong_ids(tokens, ids, self._rows.tokenizer.size):
        self._rows.check_rows()  # Raises with the row.
      batch = batch_of_rows(tokens, ids, mask, bos_id=self._rows.tokenizer.bos_id, before=before)
      goes_on = batch["segment_ids"] == 1
      places = batch["positions"] + np.where(goes_on, told[:, None], 0)
      told = places[:, -1] + 1
      yield batch | {"row_bytes": row_bytes, "places": places}
