"""Reads rows in lanes: row b of a batch goes on where row b of the batch before ended."""

from __future__ import annotations

import functools
import hashlib
from typing import Any, NoReturn

import numpy as np

from base.errors import UserError
from base.wording import plural
from data.rows import RowFiles

# How messages call the option.
OPTION = "--gin.training.step.StepOptions.carry_state"
# Rows of an endless run: exact as a float, which Grain computes with.
_ENDLESS = 2**48


class LaneError(UserError, ValueError):
  """Rows that cannot be read in lanes; the message says what to change."""


def refuse_mixture() -> NoReturn:
  """Raises LaneError about several texts."""
  raise LaneError(
    "a mixture cannot be read in lanes: rows of other texts would come between those of a "
    f"document. Train on one text, or set {OPTION}=False."
  )


def token_before(rows: RowFiles, row: int) -> int:
  """Returns the last token of the row before, if its document goes on in this one; else -1.

  Every document ends with an EOS, or with padding behind it.
  """
  if not rows.follows(row):
    return -1
  token = int(rows.tokens[row - 1][-1])
  goes_on = token != rows.tokenizer.eos_id and rows.segment_ids[row - 1][-1] > 0
  return token if goes_on and rows.segment_ids[row][0] > 0 else -1


class Lanes:
  """A random-access source of rows, in an order that depends only on seed, batch and lane.

  The text is a ring of rows, its shards in an order that is drawn anew for each epoch. It is cut
  into one stretch of consecutive rows per lane, all of the same length, at a place that is drawn
  too. An epoch reads each row at most once, and leaves out fewer rows than there are lanes. A
  document that goes on beyond its stretch is cut there, and where the ring's end meets its start.

  Attributes:
    order: names the order: equal strings mean that lanes can go on.
    fresh_at: a batch whose rows continue nothing, because the states are those of another order.
  """

  def __init__(self, rows: RowFiles, lanes: int, seed: int):
    """Sets the rows, the number of lanes, which is the batch size, and the seed of the order.

    Raises:
      LaneError: there are fewer rows than lanes.
    """
    if len(rows) < lanes:
      raise LaneError(
        f"{rows.directory} has {plural(len(rows), 'row')} for {plural(lanes, 'lane')}: with "
        "carried states, each row of a batch reads a stretch of the text. Set --gin.BATCH_SIZE to "
        f"at most {len(rows)}, or {OPTION}=False."
      )
    self._rows = rows
    self._lanes = lanes
    self._seed = seed
    self._length = len(rows) // lanes
    self._sizes = np.array([shard.rows for shard in rows.manifest.shards])
    self._firsts = np.cumsum(self._sizes) - self._sizes
    order = [rows.fingerprint, lanes, seed]
    self.order = hashlib.sha256(repr(order).encode()).hexdigest()[:16]
    self.fresh_at: int | None = None
    self._cut = functools.lru_cache(4)(self._draw)

  def __len__(self) -> int:
    return _ENDLESS

  def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The shards in the order of an epoch, the end of each in the ring, and where it is cut."""
    random = np.random.default_rng((self._seed, epoch))
    order = random.permutation(len(self._sizes))
    return order, np.cumsum(self._sizes[order]), int(random.integers(len(self._rows)))

  def row(self, step: int, lane: int) -> int:
    """Returns the number of the row that a lane reads in a batch."""
    epoch, done = divmod(step, self._length)
    order, ends, start = self._cut(epoch)
    place = (start + lane * self._length + done) % len(self._rows)
    number = int(np.searchsorted(ends, place, side="right"))
    shard = order[number]
    return int(self._firsts[shard] + place - (ends[number] - self._sizes[shard]))

  def _before(self, step: int, lane: int, row: int) -> int:
    """Returns `token_before` a row, if the lane read the row before it in the batch before."""
    if step % self._length == 0 or step == self.fresh_at or self.row(step - 1, lane) != row - 1:
      return -1
    return token_before(self._rows, row)

  def __getitem__(self, index: int) -> tuple[Any, ...]:
    """Returns tokens, segment ids, loss mask, bytes and `before` of `data.loader.batch_of_rows`.

    Args:
      index: step * lanes + lane.
    """
    step, lane = divmod(int(index), self._lanes)
    row, rows = self.row(step, lane), self._rows
    tokens, segment_ids = rows.tokens[row], rows.segment_ids[row]
    mask = segment_ids > 0 if rows.loss_mask is None else rows.loss_mask[row] > 0
    before = np.int32(self._before(step, lane, row))
    return tokens, segment_ids, mask, np.int64(rows.row_bytes[row]), before
