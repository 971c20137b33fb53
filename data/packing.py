"""Packs documents into rows of a fixed length: cuts long ones, or keeps documents whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.files import CorpusError
from data.manifest import Counts
from data.tokenizers import Tokenizer

# Tokens of a block of rows: its arrays fit into a core's cache, and memory is used again.
_BLOCK = 2**16

# Two of bool, one of int64, two of int32; and the segment ids, summed up and masked.
_BYTES_OF_TOKEN = 2 * 1 + 8 + 2 * 4 + 2 * 4

# Tokens processed together: a document may be nearly as large as memory.
_PIECE = 2**20


def rows_at_once(sequence_length: int) -> int:
  """Returns the number of rows of a block."""
  return max(1, _BLOCK // sequence_length)


def block_bytes(sequence_length: int) -> int:
  """Returns the bytes of the arrays of a block of rows, with those made when it is full."""
  return rows_at_once(sequence_length) * sequence_length * _BYTES_OF_TOKEN


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
    # A tokenizer that encodes all text has no id of its own for unknown text.
    self._unk_id = tokenizer.unk_id if tokenizer.unk_id != tokenizer.eos_id else -1
    self._byte_lengths = tokenizer.byte_lengths().astype(np.int64)
    self._length = sequence_length
    self._rows_at_once = rows_at_once(sequence_length)
    self._whole = whole
    # Not a dataclass: a copy for every document would take most of the time.
    self._counts = dict.fromkeys((field.name for field in dataclasses.fields(Counts)), 0)
    self._continues = False
    self._start_block()

  def _start_block(self) -> None:
    size = self._rows_at_once * self._length
    self._tokens = np.zeros(size, np.int32)
    # 1 where a document starts; summed up to segment ids when the block is full.
    self._starts = np.zeros(size, np.int32)
    self._is_text = np.zeros(size, bool)
    self._bytes = np.zeros(size, np.int64)
    self._loss_mask = np.zeros(size, bool)
    self._place = 0

  @property
  def counts(self) -> Counts:
    """Counts of the documents so far."""
    return Counts(**self._counts)

  def add(
    self,
    tokens: np.ndarray,
    text_bytes: int,
    invalid_utf8: bool = False,
    loss_mask: np.ndarray | None = None,
    ends: bool = True,
  ) -> Iterator[PackedRows]:
    """Packs one document and yields the rows that became full, in blocks.

    Args:
      tokens: [n] integer ids; an EOS is appended if missing, in the loss if the last token is.
      text_bytes: UTF-8 bytes of the document's text, divided among the tokens by their bytes.
      invalid_utf8: whether some of its bytes were replaced.
      loss_mask: [n] bool, True on the tokens in the loss; None is all of them.
      ends: whether the document ends here; else the next call continues it, and no EOS is added.

    Raises:
      CorpusError: an id is not in the vocabulary.
      ValueError: the mask has another length than the tokens.
    """
    counts, eos = self._counts, self._eos_id
    number = counts["documents"] + 1
    if loss_mask is not None and len(loss_mask) != len(tokens):
      raise ValueError(
        f"document {number} has {len(tokens)} tokens and a loss mask of"
        f" {len(loss_mask)}. Give one value per token, or None."
      )
    continues, self._continues = self._continues, not ends
    counts["invalid_utf8_documents"] += int(invalid_utf8)
    if not continues and (not len(tokens) or (len(tokens) == 1 and tokens[0] == eos)):
      counts["empty_documents"] += int(ends)
      self._continues = False
      return
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= self._size):
      bad = tokens[(tokens < 0) | (tokens >= self._size)][0]
      raise CorpusError(
        f"document {number} holds the id {bad}, the tokenizer has ids 0 to"
        f" {self._size - 1}. The task was tokenized by another tokenizer."
      )
    if ends and not (len(tokens) and tokens[-1] == eos):
      tokens = np.append(tokens, eos)
      if loss_mask is not None:
        loss_mask = np.append(loss_mask, loss_mask[-1:] if len(loss_mask) else True)
    column = self._place % self._length
    if self._whole and column and column + len(tokens) > self._length:
      counts["padding_tokens"] += self._length - column
      self._place += self._length - column
      column = 0
      yield from self._full_block()
    counts["documents"] += int(ends)
    counts["cut_documents"] += int(column + len(tokens) > self._length)
    counts["text_bytes"] += text_bytes
    counts["tokens"] += len(tokens)
    if self._unk_id >= 0:
      counts["unknown_tokens"] += int(np.count_nonzero(tokens == self._unk_id))
    if loss_mask is not None:
      counts["unscored_tokens"] += int(np.count_nonzero(~loss_mask))
    if not continues:
      self._starts[self._place] = 1
    for start, spelled in self._pieces(tokens, text_bytes):
      piece = slice(start, start + len(spelled))
      mask = None if loss_mask is None else loss_mask[piece]
      if mask is not None:
        # Masked tokens contribute no bytes.
        scored = np.where(mask, spelled, 0)
        counts["unscored_bytes"] += int(spelled.sum() - scored.sum())
        spelled = scored
      yield from self._fill(tokens[piece], mask, spelled)

  def finish(self) -> PackedRows:
    """Returns the remaining rows; the last may end in padding."""
    rows = -(-self._place // self._length)
    self._counts["padding_tokens"] += rows * self._length - self._place
    left = self._block(rows)
    self._start_block()
    return left

  def _full_block(self) -> Iterator[PackedRows]:
    """Yields the block and starts the next, if it is full."""
    if self._place == len(self._tokens):
      block = self._block(self._rows_at_once)
      self._start_block()
      yield block

  def _block(self, rows: int) -> PackedRows:
    """Returns the first rows of the block."""
    shape = (rows, self._length)
    size = rows * self._length
    is_text = self._is_text[:size].reshape(shape)
    starts = self._starts[:size].reshape(shape)
    # A row's first segment is number 1, whether or not a document starts there.
    starts[:, :1] = 1
    segment_ids = np.where(is_text, np.cumsum(starts, axis=1, dtype=np.int32), 0)
    return PackedRows(
      self._tokens[:size].reshape(shape),
      segment_ids,
      self._bytes[:size].reshape(shape).sum(axis=1),
      self._loss_mask[:size].reshape(shape),
    )

  def _pieces(self, tokens: np.ndarray, text_bytes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields a document in pieces of bounded size, with the bytes of text of each token.

    The tokens' bytes are scaled to sum to `text_bytes`: a tokenizer that normalises the text may
    have fewer or more. If all are 0, the tokens get equal shares.

    Yields:
      start: index of the piece's first token; spelled: [n] int64, the bytes of its n tokens.
    """
    if len(tokens) <= _PIECE:
      lengths = self._byte_lengths[tokens]
      total = int(lengths.sum())
      if total == text_bytes:
        yield 0, lengths
        return
    starts = range(0, len(tokens), _PIECE)
    total = sum(int(self._byte_lengths[tokens[i : i + _PIECE]].sum()) for i in starts)
    before = 0
    for i in starts:
      piece = tokens[i : i + _PIECE]
      lengths = self._byte_lengths[piece] if total else np.ones(len(piece), np.int64)
      ends = before + np.concatenate([[0], np.cumsum(lengths)])
      before = int(ends[-1])
      if total != text_bytes:
        ends = ends * text_bytes // (total or len(tokens))
      yield i, np.diff(ends)

  def _fill(
    self, tokens: np.ndarray, loss_mask: np.ndarray | None, spelled: np.ndarray
  ) -> Iterator[PackedRows]:
    """Copies tokens into the block; yields the blocks that become full."""
    done = 0
    while done < len(tokens):
      count = min(len(self._tokens) - self._place, len(tokens) - done)
      place, part = slice(self._place, self._place + count), slice(done, done + count)
      self._tokens[place] = tokens[part]
      self._bytes[place] = spelled[part]
      self._is_text[place] = True
      self._loss_mask[place] = True if loss_mask is None else loss_mask[part]
      self._place += count
      done += count
      yield from self._full_block()
