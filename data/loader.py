"""Loads batches of rows with Grain; a row depends only on the seed, the step and the slot."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import grain
import numpy as np

from data import rows as rows_lib
from data.lanes import Lanes, refuse_mixture
from data.mixture import MixedRows, Stages

# Rows of an endless run: exact as a float, which Grain computes with.
_ENDLESS = 2**48

# Each element is a whole batch, so two threads and a few batches hide the reading.
_READING = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


class Batches:
  """An iterator of batches; its state is the number of rows read."""

  def __init__(
    self,
    rows_from: Callable[[int, threading.Event], grain.MapDataset],
    batch_size: int,
    scheduled: Scheduled | None = None,
    lanes: Lanes | None = None,
  ):
    """Starts at the first row.

    Args:
      rows_from: makes the batches that start at a given row; the event ends their reading.
      batch_size: rows of a global batch, over all readers.
      scheduled: the rows, if they depend on the steps done.
      lanes: the rows, if they are read in lanes.
    """
    self._rows_from = rows_from
    self._batch_size = batch_size
    self._scheduled = scheduled
    self._lanes = lanes
    self._open(0)

  def _open(self, row: int) -> None:
    """Continues with the batch that starts at a row of the endless sequence."""
    step, self._first = divmod(row, self._batch_size)
    self._opened_at = step
    self._closed = threading.Event()
    dataset = self._rows_from(self._first, self._closed)
    self._length = len(dataset)
    self._iterator = iter(dataset.to_iter_dataset(_READING))
    if step:
      self._iterator.set_state({"next_index": step})

  def __len__(self) -> int:
    """Number of batches: one pass without `repeat`, a very large number with it."""
    return self._length

  def __iter__(self) -> Batches:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """Returns the next batch.

    A dict of [B, T] arrays (B is the number of this reader's slots): inputs, targets, segment_ids,
    positions (int32) and loss_weights (float32). Batches of a single pass also have row_bytes, [B]
    int64: bytes of text of each row's targets in the loss.

    Raises:
      RowFileError: a row has an id outside its vocabulary, or invalid segments.
    """
    return next(self._iterator)

  def state(self) -> dict[str, Any]:
    """Returns {'next_row': n}: rows of all earlier batches, for any batch size and slots.

    Of a mixture with a schedule also 'step', the batches read, and 'stages', pairs of the step and
    the row at which its weights changed so far. Of lanes also 'lanes', which names their order.
    """
    index = int(self._iterator.get_state()["next_index"])
    found: dict[str, Any] = {"next_row": index * self._batch_size + self._first}
    if self._scheduled is not None:
      found |= self._scheduled.state(index - self._opened_at)
    if self._lanes is not None:
      found["lanes"] = self._lanes.order
    return found

  def restore(self, state: dict[str, Any]) -> None:
    """Continues at row `state['next_row']`, and with the schedule of a mixture at its step.

    Older states count batches, {'next_index': n}: of `state['batch_size']` rows if present, else of
    this reader's batch size. Lanes of another order than `state['lanes']` continue nothing.
    """
    if "next_row" in state:
      row = state["next_row"]
    else:
      row = state["next_index"] * state.get("batch_size", self._batch_size)
    self.close()
    if self._scheduled is not None:
      self._scheduled.restore(row, state.get("step"), state.get("stages", ()))
    if self._lanes is not None:
      row -= row % self._batch_size
      known = state.get("lanes") == self._lanes.order
      self._lanes.fresh_at = None if known else row // self._batch_size
    self._open(row)

  def close(self) -> None:
    """Stops the reading threads, also within a batch: Python waits for them when it exits."""
    self._closed.set()
    self._iterator.close()


class _Rows:
  """A random-access source of (tokens, segment ids, loss mask, bytes).

  Rows after the last one are padding.
  """

  def __init__(self, rows: rows_lib.RowFiles, length: int | None = None):
    self._rows = rows
    self._length = len(rows) if length is None else length

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.int64]:
    rows = self._rows
    if index >= len(rows):
      tokens, segment_ids = np.zeros_like(rows.tokens[0]), np.zeros_like(rows.segment_ids[0])
      return tokens, segment_ids, segment_ids > 0, np.int64(0)
    tokens, segment_ids = rows.tokens[index], rows.segment_ids[index]
    mask = segment_ids > 0 if rows.loss_mask is None else rows.loss_mask[index] > 0
    return tokens, segment_ids, mask, np.int64(rows.row_bytes[index])


class Scheduled:
  """A random-access source of the rows of a mixture whose weights change in a run."""

  def __init__(self, parts: Sequence[grain.MapDataset], rows: MixedRows, batch_size: int):
    """Starts at step 0; the arguments are those of `batches`, with the parts' rows."""
    self._parts, self._batch_size = parts, batch_size
    self._steps = [0, *(step for step, _ in rows.schedule)]
    self._most_rows = rows.most_rows
    self._weights = [rows.weights, *(weights for _, weights in rows.schedule)]
    self.restore(0, 0)

  def restore(self, row: int, step: int | None, stages: Sequence[tuple[int, int]] = ()) -> None:
    """Continues after `step` batches with `row` rows.

    Args:
      row: rows of all earlier batches.
      step: earlier batches, of any size; None, of older states, is as many as have now so many.
      stages: the step and the first row of each stage that has begun.
    """
    self._step = row // self._batch_size if step is None else step
    known = dict(stages) if step is not None else {}
    self._first_rows = []
    for first in self._steps:
      if first > self._step or step is None:
        found = row + (first - self._step) * self._batch_size
        found = first * self._batch_size if step is None else found
      else:  # a step that was not in the schedule then is placed between those that were
        found = known.get(first, row * first // max(1, self._step))
      self._first_rows.append(max([found, *self._first_rows[-1:]]))
    self._stages = Stages(self._weights, self._first_rows, self._most_rows)

  def state(self, read: int) -> dict[str, Any]:
    """Returns the arguments of `restore` after `read` more batches."""
    step = self._step + read
    begun = [
      [first, row]
      for first, row in zip(self._steps, self._first_rows, strict=True)
      if first <= step
    ]
    return {"step": step, "stages": begun}

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
    part, row = self._stages.place(int(index))
    return cast(tuple[np.ndarray, ...], self._parts[part][row])


def _training_rows(
  rows: Any, seed: int, shuffle: bool, batch_size: int
) -> grain.MapDataset | Scheduled:
  """Returns an endless sequence of rows."""
  if isinstance(rows, MixedRows):
    # A seed per part: equal parts must not be read in the same order.
    parts = [
      cast(grain.MapDataset, _training_rows(part, seed + i, shuffle, batch_size))
      for i, part in enumerate(rows.parts)
    ]
    if rows.schedule or rows.most_rows:
      return Scheduled(parts, rows, batch_size)
    return grain.MapDataset.mix(parts, weights=rows.weights)
  dataset = grain.MapDataset.source(_Rows(rows)).seed(seed)
  return (dataset.shuffle() if shuffle else dataset).repeat(_ENDLESS // len(rows))


def _single_pass(rows: Any, batch_size: int, seed: int, shuffle: bool) -> grain.MapDataset:
  """Returns every row once, then rows of padding up to a full batch."""
  parts = rows.parts if isinstance(rows, MixedRows) else (rows,)
  dataset = grain.MapDataset.concatenate([grain.MapDataset.source(_Rows(part)) for part in parts])
  if shuffle:
    dataset = dataset.seed(seed).shuffle()
  missing = -len(dataset) % batch_size
  if not missing:
    return dataset
  padding = grain.MapDataset.source(_Rows(parts[0], missing + len(parts[0])))[len(parts[0]) :]
  return grain.MapDataset.concatenate([dataset, padding])


class _Closed(Exception):
  """Ends the reading of a batch that nobody waits for."""


class _Slots:
  """A random-access source of some slots of each batch, stacked.

  Batch n of a sequence of rows holds rows first + n * B to first + (n + 1) * B.
  """

  def __init__(
    self,
    rows: grain.MapDataset | Scheduled | Lanes,
    first: int,
    batch_size: int,
    slots: Sequence[int],
    closed: threading.Event,
  ):
    self._rows = rows
    self._closed = closed
    self._first = first
    self._batch_size = batch_size
    self._slots = tuple(slots)

  def __len__(self) -> int:
    return (len(self._rows) - self._first) // self._batch_size

  def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
    start = self._first + index * self._batch_size
    rows = []
    for slot in self._slots:
      if self._closed.is_set():
        raise _Closed
      rows.append(self._rows[start + slot])
    return tuple(np.stack(arrays) for arrays in zip(*rows, strict=True))


def batch_of_rows(
  tokens: np.ndarray,
  segment_ids: np.ndarray,
  loss_mask: np.ndarray | None = None,
  *,
  bos_id: int,
  before: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """Derives a model's inputs from the arrays of row files.

  Args:
    tokens: [B, T] integers, the targets.
    segment_ids: [B, T] integers from 1 within a row, in contiguous runs; 0 is padding.
    loss_mask: [B, T] bool, True on the targets in the loss; None is all text.
    bos_id: the input at each segment's first token.
    before: [B] integers, of rows that are read one after another: the last token of the row before,
      where this row continues its document, and -1 where it does not. None reads each row alone.

  Returns:
    inputs, targets, segment_ids, positions: [B, T] int32; loss_weights: [B, T] float32. With
    `before`, segment 1 is the document that goes on, and a row that begins one starts with segment
    2; positions count from the row's start all the same (see `training.carried_state`).
  """
  targets = tokens.astype(np.int32)
  segment_ids = segment_ids.astype(np.int32)
  starts = np.ones(targets.shape, bool)
  starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
  inputs = np.full_like(targets, bos_id)
  inputs[:, 1:] = np.where(starts[:, 1:], bos_id, targets[:, :-1])
  steps = np.arange(targets.shape[1], dtype=np.int32)
  positions = steps - np.maximum.accumulate(np.where(starts, steps, 0), axis=1)
  is_text = segment_ids > 0
  if before is not None:
    inputs[:, 0] = np.where(before < 0, bos_id, before)
    segment_ids = np.where(is_text, segment_ids + (before < 0)[:, None], 0).astype(np.int32)
  return {
    "inputs": np.where(is_text, inputs, 0),
    "targets": targets,
    "segment_ids": segment_ids,
    "positions": np.where(is_text, positions, 0),
    "loss_weights": (is_text if loss_mask is None else is_text & loss_mask).astype(np.float32),
  }


def batches(
  rows: rows_lib.RowFiles | MixedRows,
  batch_size: int,
  *,
  seed: int = 0,
  shuffle: bool = True,
  repeat: bool = True,
  start_step: int = 0,
  slots: Sequence[int] | None = None,
  in_lanes: bool = False,
) -> Batches:
  """Iterates over batches of rows.

  Training: the defaults. Held-out text in order, once: `shuffle=False, repeat=False`; the last
  batch is then filled with rows of padding (segment id 0, loss weight 0, no bytes), and every batch
  has the bytes of text of its rows.

  Args:
    rows: row files, or a mixture of them (mixed row by row by weight, to within 1% of the smallest;
      without `repeat` the parts follow one another and the weights have no effect).
    batch_size: rows per step over all readers.
    seed: seed of the order of the rows; every epoch has another order.
    shuffle: False reads the rows in order.
    repeat: False ends after one pass.
    start_step: the first batch to return.
    slots: rows of each batch that this reader returns, in this order; None is all. Any set of
      readers makes the same global batch.
    in_lanes: read text in lanes, endlessly: see `data.lanes.Lanes`. Their order replaces shuffling.

  Raises:
    ValueError: a number is out of range.
    data.lanes.LaneError: the rows cannot be read in lanes.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size={batch_size} must be at least 1.")
  slots = range(batch_size) if slots is None else slots
  wrong = next((slot for slot in slots if not 0 <= slot < batch_size), None)
  if wrong is not None or not len(slots):
    raise ValueError(f"slots={list(slots)} must be some of [0, {batch_size}), the rows of a batch.")
  if start_step < 0:
    raise ValueError(f"start_step={start_step} must not be negative.")
  if in_lanes:
    if isinstance(rows, MixedRows):
      refuse_mixture()
    dataset = Lanes(rows, batch_size, seed)
  elif repeat:
    dataset = _training_rows(rows, seed, shuffle, batch_size)
  else:
    dataset = _single_pass(rows, batch_size, seed, shuffle)
  bos_id, vocabulary_size = rows.tokenizer.bos_id, rows.tokenizer.size

  def batch(stacked: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    tokens, ids, mask, row_bytes, *before = stacked
    if wrong := rows_lib.wrong_ids(tokens, ids, vocabulary_size):
      for part in rows.parts if isinstance(rows, MixedRows) else (rows,):
        part.check_rows()  # Raises with the row.
      raise rows_lib.RowFileError(f"a batch of {rows!r}: {wrong}. {rows_lib.REMEDY}")
    made = batch_of_rows(tokens, ids, mask, bos_id=bos_id, before=before[0] if before else None)
    # Only evaluations, which make a single pass, need the bytes.
    return made if repeat else made | {"row_bytes": row_bytes}

  def rows_from(first: int, closed: threading.Event) -> grain.MapDataset:
    source = grain.MapDataset.source(_Slots(dataset, first, batch_size, slots, closed))
    return source.map(batch)

  scheduled = dataset if isinstance(dataset, Scheduled) else None
  lanes = dataset if isinstance(dataset, Lanes) else None
  result = Batches(rows_from, batch_size, scheduled, lanes)
  if start_step:
    of_lanes = {} if lanes is None else {"lanes": lanes.order}
    result.restore({"next_row": start_step * batch_size} | of_lanes)
  return result


def steps_per_pass(rows: rows_lib.RowFiles | MixedRows, batch_size: int) -> int:
  """Returns the number of batches in one pass over `rows`, including a padded last one."""
  return math.ceil(len(rows) / batch_size)
