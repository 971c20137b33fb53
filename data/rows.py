"""Row files: text packed once into rows of a fixed length, read at random by memory mapping."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from base import buckets, paths
from data import shards, tokenizers
from data.files import shortened
from data.manifest import REMEDY, ArrayFile, Counts, Manifest, RowFileError
from data.tokenizers import Tokenizer

TOKENS = "tokens.bin"
SEGMENT_IDS = "segment_ids.bin"
ROW_BYTES = "row_bytes.bin"
# Only if the loss is not on every token.
LOSS_MASK = "loss_mask.bin"

_ROWS_AT_ONCE = 256


def token_dtype(vocabulary_size: int) -> str:
  """Returns the smallest dtype of row files for the tokenizer's ids."""
  return "uint16" if vocabulary_size <= 2**16 else "int32"


def segment_dtype(sequence_length: int) -> str:
  """Returns the smallest dtype for the segment ids of a row: at most one segment per token."""
  return "uint16" if sequence_length < 2**16 else "int32"


def wrong_ids(tokens: np.ndarray, segment_ids: np.ndarray, vocabulary_size: int) -> str | None:
  """Describes invalid ids in rows; None if all are valid.

  Args:
    tokens, segment_ids: [..., T] integers, as row files store them.
    vocabulary_size: number of ids.
  """
  low, high = int(tokens.min(initial=0)), int(tokens.max(initial=0))
  if low < 0 or high >= vocabulary_size:
    return (
      f"the id {low if low < 0 else high} is not in the vocabulary (0 to {vocabulary_size - 1})"
    )
  before, after = segment_ids[..., :-1], segment_ids[..., 1:]
  same_or_padding = (after == before) | (after == 0)
  follows = (before > 0) & (before + 1 == after)
  if (segment_ids[..., 0].astype(np.int64) >> 1).any() or not (same_or_padding | follows).all():
    return "segments are not numbered 1, 2, 3 and so on, with 0 only at the end"
  return None


class RowFiles:
  """The row files of a directory; `len` is the number of rows.

  The arrays are `shards.ShardedArray`s, which open the files of a shard when a row of it is read;
  those of a single shard are NumPy's memory maps.

  Attributes:
    directory: the directory.
    manifest: the manifest.
    tokenizer: the tokenizer, read from the directory.
    tokens: [N, T] the targets.
    segment_ids: [N, T] from 1 within a row, in contiguous runs; 0 is padding.
    row_bytes: [N] bytes of UTF-8 text of the row's targets in the loss.
    loss_mask: [N, T] uint8: 1 on the targets in the loss; None if all are.
  """

  def __init__(
    self, directory: str | Path, *, verify: bool = False, block_cache_bytes: int = 20 * 10**9
  ):
    """Opens row files.

    Args:
      directory: a directory written by `RowWriter`.
      verify: also read every file and compare its sha256 (sizes are always compared; in a bucket,
        when a file is read).
      block_cache_bytes: most bytes on this machine of rows that lie in a bucket.

    Raises:
      RowFileError: files are missing, damaged, truncated, or of an unknown version.
    """
    self.directory = paths.of(directory)
    self.manifest = Manifest.read(self.directory)
    names = [TOKENS, SEGMENT_IDS, ROW_BYTES]
    if any(name.rpartition("/")[2] == LOSS_MASK for name in self.manifest.files):
      names.append(LOSS_MASK)
    self._require_files(names)
    for name, file in self.manifest.files.items():
      if not buckets.in_bucket(self.directory):  # the manifest was written last
        file.check_size(self.directory / name)
      if verify:
        file.verify(self.directory / name)
    arrays = {name: self._opened(name, block_cache_bytes) for name in names}
    self.tokens = arrays[TOKENS]
    self.segment_ids = arrays[SEGMENT_IDS]
    self.row_bytes = arrays[ROW_BYTES]
    self.loss_mask = arrays.get(LOSS_MASK)

  def _opened(self, name: str, block_cache_bytes: int) -> Any:
    """Opens one of the arrays, such as 'tokens.bin'."""
    if not buckets.in_bucket(self.directory):
      return shards.opened(self.directory, self.manifest, name)
    from data import bucket_rows

    files = shards.files_of(self.directory, self.manifest, name)
    return bucket_rows.BucketArray(files, bucket_rows.shared_cache(block_cache_bytes))

  def _require_files(self, names: list[str]) -> None:
    """Raises RowFileError unless the manifest lists exactly these files of every shard."""
    files, length = self.manifest.files, self.manifest.sequence_length
    dtypes: dict[str, set[str]] = {name: set() for name in names}
    for shard in self.manifest.shards:
      for name in names:
        shape = (shard.rows,) if name == ROW_BYTES else (shard.rows, length)
        file = files.get(shard.path(name))
        if file is None or file.shape != shape:
          raise RowFileError(
            f"{self.directory}: the manifest's entry for {shard.path(name)} is {file}, expected"
            f" shape {shape}. {REMEDY}"
          )
        dtypes[name].add(file.dtype)
    if len(files) != len(names) * len(self.manifest.shards):
      known = {shard.path(name) for shard in self.manifest.shards for name in names}
      unknown = shortened(sorted(files.keys() - known))
      raise RowFileError(
        f"{self.directory}: the manifest lists {unknown}, which row files do not have. {REMEDY}"
      )
    if mixed := next((name for name, found in dtypes.items() if len(found) > 1), None):
      raise RowFileError(
        f"{self.directory}: the {mixed} of the shards have several dtypes,"
        f" {', '.join(sorted(dtypes[mixed]))}. {REMEDY}"
      )

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer of the ids."""
    return tokenizers.load(self.directory)

  @property
  def sequence_length(self) -> int:
    """Tokens per row."""
    return self.manifest.sequence_length

  @property
  def counts(self) -> Counts:
    """Counts of documents, tokens and bytes."""
    return self.manifest.counts

  def __len__(self) -> int:
    return self.manifest.rows

  def follows(self, row: int) -> bool:
    """Whether the text of a row comes right behind that of the row before."""
    return row > 0

  def __repr__(self) -> str:
    return f"RowFiles({str(self.directory)!r}, rows={len(self)}, length={self.sequence_length})"

  @property
  def bytes_per_token(self) -> float:
    """Mean bytes of text per target in the loss: bits per byte = nats per target / ln 2 / this."""
    counts = self.counts
    return (counts.text_bytes - counts.unscored_bytes) / (counts.tokens - counts.unscored_tokens)

  @property
  def tokens_per_target(self) -> float:
    """Mean tokens per target in the loss: above 1 where only answers are in it."""
    return self.counts.tokens / (self.counts.tokens - self.counts.unscored_tokens)

  def text_bytes(self, rows: int | None = None) -> int:
    """Returns the bytes of text in the loss in the first `rows` rows (all by default)."""
    left = len(self) if rows is None else max(0, min(rows, len(self)))
    total = first = 0
    for shard in self.manifest.shards:
      if shard.rows > left:
        # The sums of whole shards are known without opening them.
        return total + int(self.row_bytes[first : first + left].sum(dtype=np.int64))
      total, left, first = total + shard.scored_bytes, left - shard.rows, first + shard.rows
    return total

  @property
  def fingerprint(self) -> str:
    """Identifies the content: equal fingerprints mean equal batches."""
    files = sorted((name, file.sha256) for name, file in self.manifest.files.items())
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16]

  def check_rows(self, first: int = 0, count: int | None = None) -> None:
    """Checks the ids of rows.

    Args:
      first, count: the rows to read; by default all after the first.

    Raises:
      RowFileError: a row has invalid ids; the message names the first such row.
    """
    last = len(self) if count is None else min(len(self), first + count)
    for start in range(first, last, _ROWS_AT_ONCE):
      stop = min(start + _ROWS_AT_ONCE, last)
      rows = self.tokens[start:stop], self.segment_ids[start:stop]
      if wrong_ids(*rows, self.tokenizer.size) is None:
        continue
      for row in range(stop - start):
        if wrong := wrong_ids(rows[0][row], rows[1][row], self.tokenizer.size):
          raise RowFileError(f"{self.directory}, row {start + row}: {wrong}. {REMEDY}")

  def check(self, tokenizer: Tokenizer, sequence_length: int) -> RowFiles:
    """Returns itself, if it has this tokenizer and length.

    Raises:
      RowFileError: it was packed with another tokenizer or length.
    """
    described = tokenizer.describe()
    if self.manifest.vocabulary != described:
      raise RowFileError(
        f"{self.directory} was packed with the tokenizer {self.manifest.vocabulary},"
        f" not {described}. Use that tokenizer, or prepare in another directory."
      )
    if self.sequence_length != sequence_length:
      raise RowFileError(
        f"{self.directory} has rows of {self.sequence_length} tokens, not"
        f" {sequence_length}. Use that length, or prepare in another directory."
      )
    return self


class _ArrayWriter:
  """Appends arrays to a file; counts and hashes them."""

  def __init__(self, path: Path, dtype: str, row_shape: tuple[int, ...]):
    self._file = path.open("wb")
    self._dtype = dtype
    self._row_shape = row_shape
    self._hash = hashlib.sha256()
    self._rows = 0

  def write(self, array: np.ndarray) -> None:
    """Appends [rows, *row_shape]."""
    data = np.ascontiguousarray(array, np.dtype(self._dtype).newbyteorder("<"))
    self._file.write(data.data)
    self._hash.update(data.data)
    self._rows += len(array)

  def finish(self) -> ArrayFile:
    """Closes the file and returns its entry in the manifest."""
    self._file.close()
    return ArrayFile(self._dtype, (self._rows, *self._row_shape), self._hash.hexdigest())


class RowWriter:
  """Writes row files, which are complete after `finish` or `finish_shard`."""

  def __init__(
    self, directory: Path, tokenizer: Tokenizer, sequence_length: int, *, masked: bool = False
  ):
    """Starts the files in `directory`, which must be empty; `masked` keeps the loss mask."""
    self._directory = directory
    self._tokenizer = tokenizer
    self._sequence_length = sequence_length
    row = (sequence_length,)
    tokens, segments = token_dtype(tokenizer.size), segment_dtype(sequence_length)
    self._writers = {
      TOKENS: _ArrayWriter(directory / TOKENS, tokens, row),
      SEGMENT_IDS: _ArrayWriter(directory / SEGMENT_IDS, segments, row),
      ROW_BYTES: _ArrayWriter(directory / ROW_BYTES, "uint32", ()),
    }
    if masked:
      self._writers[LOSS_MASK] = _ArrayWriter(directory / LOSS_MASK, "uint8", row)

  def write(
    self,
    tokens: np.ndarray,
    segment_ids: np.ndarray,
    row_bytes: np.ndarray,
    loss_mask: np.ndarray,
  ) -> None:
    """Appends rows: tokens, segment_ids and loss_mask [rows, T], row_bytes [rows].

    Raises:
      ValueError: some text is not in the loss, and the files keep no mask.
    """
    if LOSS_MASK in self._writers:
      self._writers[LOSS_MASK].write(loss_mask)
    elif not np.array_equal(loss_mask, segment_ids > 0):
      raise ValueError(
        f"{self._directory}: documents have loss masks, which these row files do not keep."
        " Open the writer with masked=True."
      )
    self._writers[TOKENS].write(tokens)
    self._writers[SEGMENT_IDS].write(segment_ids)
    self._writers[ROW_BYTES].write(row_bytes)

  def finish(self, source: dict, counts: Counts) -> Manifest:
    """Closes the files and writes the tokenizer and the manifest."""
    files = {name: writer.finish() for name, writer in self._writers.items()}
    return write_manifest(
      self._directory,
      self._tokenizer,
      source=source,
      sequence_length=self._sequence_length,
      rows=files[TOKENS].shape[0],
      counts=counts,
      files=files,
    )

  def finish_shard(self) -> dict[str, ArrayFile]:
    """Closes the files and returns their entries in a manifest of several shards."""
    return {name: writer.finish() for name, writer in self._writers.items()}


def write_manifest(directory: Path, tokenizer: Tokenizer, **values: Any) -> Manifest:
  """Writes the tokenizer and the manifest; `values` are the manifest's other attributes."""
  tokenizers.save(tokenizer, directory)
  manifest = Manifest(vocabulary=tokenizer.describe(), **values)
  manifest.write(directory)
  return manifest
