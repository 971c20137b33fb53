"""Packs documents into rows of a fixed length: cuts long ones, or keeps documents whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.files import CorpusError
from data.manifest import Counts
from data.tokenizers import Tokenizer

ROWS_AT_ONCE = 256

# Tokens processed together: a document may be nearly as large as memory.
_PIECE = 2**20


def block_bytes(sequence_length: int) -> int:
  """Returns the bytes of the largest array of a block of rows: int32 tokens or segment ids."""
  return ROWS_AT_ONCE * sequence_length * np.dtype(np.int32).itemsize


class PackedRows(NamedTuple):
  """Finished rows.

  Attributes:
    tokens: [rows, T] int32; 0 in padding.
    segment_ids: [rows, T] int32, from 1 within a row; 0 in padding.
    row_bytes: [rows] int64 bytes of the text in the loss.
    loss_mask: [rows, T] bool, True on the targets in the loss.
  """

  tokens: np.ndarray
  segment_ids: np.ndarray
  row_bytes: np.ndarray
  loss_mask: np.ndarray


class Packer:
  """Packs documents in order; the rows depend on nothing else.

  A document that does not fit is continued in the next row, as a new segment. Only segment ids mark
  padding, so id 0 is a token like any other.
  """

  def __init__(self, tokenizer: Tokenizer, sequence_length: int, *, whole: bool = False):
    """Packs ids of `tokenizer` into rows of `sequence_length` tokens.

    Args:
      tokenizer: made the ids.
      sequence_length: tokens per row.
      whole: pad the row and start the next one if a document does not fit; cut only documents that
        are longer than a row.
    """
    if sequence_length < 1:
      raise ValueError(f"sequence_length={sequence_length} must be at least 1.")
    self._size = tokenizer.size
    self._eos_id = tokenizer.eos_id
    self._unk_id = tokenizer.unk_id
    self._byte_lengths = tokenizer.byte_lengths().astype(np.int64)
    self._length = sequence_length
    self._whole = whole
    self._counts = Counts()
    self._start_block()

  def _start_block(self) -> None:
    shape = (ROWS_AT_ONCE, self._length)
    self._tokens = np.zeros(shape, np.int32)
    self._segment_ids = np.zeros(shape, np.int32)
    self._row_bytes = np.zeros(ROWS_AT_ONCE, np.int64)
    self._loss_mask = np.zeros(shape, bool)
    self._row = 0
    self._column = 0
    self._segment = 1

  @property
  def counts(self) -> Counts:
    """Counts of the documents so far."""
    return self._counts

  def add(
    self,
    tokens: np.ndarray,
    text_bytes: int,
    invalid_utf8: bool = False,
    loss_mask: np.ndarray | None = None,
  ) -> Iterator[PackedRows]:
    """Packs one document and yields the rows that became full, in blocks.

    Args:
      tokens: [n] integer ids; an EOS is appended if missing, in the loss if the last token is.
      text_bytes: UTF-8 bytes of the document's text, divided among the tokens by their bytes.
      invalid_utf8: whether some of its bytes were replaced.
      loss_mask: [n] bool, True on the tokens in the loss; None is all of them.

    Raises:
      CorpusError: an id is not in the vocabulary.
      ValueError: the mask has another length than the tokens.
    """
    if loss_mask is None:
      loss_mask = np.ones(len(tokens), bool)
    elif len(loss_mask) != len(tokens):
      raise ValueError(
        f"Document {self._counts.documents + 1} has {len(tokens)} tokens and a loss mask of"
        f" {len(loss_mask)}. Give one value per token, or None."
      )
    self._count(invalid_utf8_documents=int(invalid_utf8))
    if not len(tokens) or (len(tokens) == 1 and tokens[0] == self._eos_id):
      self._count(empty_documents=1)
      return
    if tokens.min() < 0 or tokens.max() >= self._size:
      bad = tokens[(tokens < 0) | (tokens >= self._size)][0]
      raise CorpusError(
        f"Document {self._counts.documents + 1} holds the id {bad}, the tokenizer has ids 0 to"
        f" {self._size - 1}. The task was tokenized by another tokenizer."
      )
    if tokens[-1] != self._eos_id:
      tokens, loss_mask = np.append(tokens, self._eos_id), np.append(loss_mask, loss_mask[-1])
    if self._whole and self._column and self._column + len(tokens) > self._length:
      self._count(padding_tokens=self._length - self._column)
      yield from self._end_row()
    self._count(
      documents=1,
      cut_documents=int(self._column + len(tokens) > self._length),
      text_bytes=text_bytes,
      tokens=len(tokens),
      unknown_tokens=int((tokens == self._unk_id).sum()),
      unscored_tokens=int((~loss_mask).sum()),
    )
    self._segment = self._segment + 1 if self._column else 1
    for start, ends in self._pieces(tokens, text_bytes):
      piece = slice(start, start + len(ends) - 1)
      # Masked tokens contribute no bytes.
      spelled = np.where(loss_mask[piece], np.diff(ends), 0)
      self._count(unscored_bytes=int(ends[-1] - ends[0] - spelled.sum()))
      done = 0
      while done < len(spelled):
        done += self._fill(tokens[piece], loss_mask[piece], spelled, done)
        if self._column == self._length:
          yield from self._end_row()

  def finish(self) -> PackedRows:
    """Returns the remaining rows; the last may end in padding."""
    rows = self._row + (self._column > 0)
    if self._column:
      self._count(padding_tokens=self._length - self._column)
    left = PackedRows(
      self._tokens[:rows], self._segment_ids[:rows], self._row_bytes[:rows], self._loss_mask[:rows]
    )
    self._start_block()
    return left

  def _count(self, **more: int) -> None:
    values = {name: getattr(self._counts, name) + n for name, n in more.items()}
    self._counts = dataclasses.replace(self._counts, **values)

  def _end_row(self) -> Iterator[PackedRows]:
    """Starts the next row; yields the block if it is full."""
    self._row, self._column, self._segment = self._row + 1, 0, 1
    if self._row == ROWS_AT_ONCE:
      block = PackedRows(self._tokens, self._segment_ids, self._row_bytes, self._loss_mask)
      self._start_block()
      yield block

  def _pieces(self, tokens: np.ndarray, text_bytes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields a document in pieces of bounded size, with the bytes of text up to each token.

    The tokens' bytes are scaled to sum to `text_bytes`: a tokenizer that normalises the text may
    have fewer or more. If all are 0, the tokens get equal shares.

    Yields:
      start: index of the piece's first token; ends: [n + 1] int64, the bytes of text before each of
        its n tokens and after the last.
    """
    starts = range(0, len(tokens), _PIECE)
    spelled = sum(int(self._byte_lengths[tokens[i : i + _PIECE]].sum()) for i in starts)
    before = 0
    for i in starts:
      piece = tokens[i : i + _PIECE]
      lengths = self._byte_lengths[piece] if spelled else np.ones(len(piece), np.int64)
      ends = before + np.concatenate([[0], np.cumsum(lengths)])
      before = int(ends[-1])
      if spelled != text_bytes:
        ends = ends * text_bytes // (spelled or len(tokens))
      yield i, ends

  def _fill(
    self, tokens: np.ndarray, loss_mask: np.ndarray, spelled: np.ndarray, start: int
  ) -> int:
    """Copies tokens from `start` on into the current row; returns how many."""
    count = min(self._length - self._column, len(tokens) - start)
    place = slice(self._column, self._column + count)
    self._tokens[self._row, place] = tokens[start : start + count]
    self._segment_ids[self._row, place] = self._segment
    self._loss_mask[self._row, place] = loss_mask[start : start + count]
    self._row_bytes[self._row] += spelled[start : start + count].sum()
    self._column += count
    return count
