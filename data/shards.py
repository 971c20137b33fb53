"""Arrays that lie in many files, which are opened when they are read."""

from __future__ import annotations

import bisect
import functools
import io
import itertools
import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.manifest import REMEDY, ArrayFile, Manifest, RowFileError

# Each array keeps at most so many files open, below the usual limit of 1024 for a process.
_OPEN_FILES = 192


class ShardedArray:
  """An array [N, ...] whose rows lie in files one after another.

  Attributes:
    shape: shape of the whole array.
    dtype: dtype of its elements.
  """

  def __init__(self, files: Sequence[tuple[Path, ArrayFile]]):
    """Takes the files in the order of their rows; opens none.

    Args:
      files: paths and manifest entries, with the same dtype and the same shape but for the rows.
    """
    self._files = files
    self._ends = list(itertools.accumulate(file.shape[0] for _, file in files))
    self.shape = (self._ends[-1], *files[0][1].shape[1:])
    self.dtype = np.dtype(files[0][1].dtype)
    self._row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
    # An evicted file closes when no thread reads from it any more.
    self._opened = functools.lru_cache(_OPEN_FILES)(self._open)

  def _open(self, number: int) -> io.FileIO:
    return io.FileIO(self._files[number][0])

  def _read(self, number: int, start: int, stop: int) -> np.ndarray:
    """Reads rows of a file. Not mapped: the kernel reads far ahead around each page of a map."""
    size = (stop - start) * self._row_bytes
    # Held until the end: an evicted file closes when its last reference goes, and another file
    # could get its number.
    file = self._opened(number)
    data = os.pread(file.fileno(), size, start * self._row_bytes)
    while len(data) < size:  # A read ends early after 2 GB, and at the end of the file.
      offset = start * self._row_bytes + len(data)
      more = os.pread(file.fileno(), size - len(data), offset)
      if not more:
        raise RowFileError(f"{self._files[number][0]} became shorter while it was read. {REMEDY}")
      data += more
    array = np.frombuffer(data, self.dtype.newbyteorder("<"))
    return array.reshape(stop - start, *self.shape[1:])

  def __len__(self) -> int:
    return self.shape[0]

  def _shard_of(self, row: int) -> tuple[int, int]:
    """Returns the number of a row's file, and that of its first row."""
    number = bisect.bisect_right(self._ends, row)
    return number, self._ends[number - 1] if number else 0

  def __getitem__(self, index: int | slice) -> np.ndarray:
    """Reads a row, or consecutive rows.

    Raises:
      IndexError: there is no such row.
      ValueError: the slice has a step.
    """
    if not isinstance(index, slice):
      row = int(index) + (len(self) if index < 0 else 0)
      if not 0 <= row < len(self):
        raise IndexError(f"row {index} of {len(self)}")
      number, first = self._shard_of(row)
      return self._read(number, row - first, row - first + 1)[0]
    start, stop, step = index.indices(len(self))
    if step != 1:
      raise ValueError(f"{index} has a step; only consecutive rows can be read.")
    parts = [np.empty((0, *self.shape[1:]), self.dtype)]
    while start < stop:
      number, first = self._shard_of(start)
      end = min(stop, self._ends[number])
      parts.append(self._read(number, start - first, end - first))
      start = end
    return np.concatenate(parts)

  def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
    """Reads all rows."""
    return np.asarray(self[:], dtype)


def files_of(directory: Path, manifest: Manifest, name: str) -> list[tuple[Path, ArrayFile]]:
  """Lists the files of one of the arrays of row files, such as 'tokens.bin', but for empty ones."""
  return [
    (directory / shard.path(name), manifest.files[shard.path(name)])
    for shard in manifest.shards
    if shard.rows
  ]


def opened(directory: Path, manifest: Manifest, name: str) -> np.ndarray | ShardedArray:
  """Returns one of the arrays of row files, such as 'tokens.bin'."""
  files = files_of(directory, manifest, name)
  if len(files) == 1:
    array = files[0][1].open(files[0][0])
    # Rows are read in random order: the kernel need not read far ahead of each.
    array._mmap.madvise(mmap.MADV_RANDOM)  # pyright: ignore[reportAttributeAccessIssue]
    return array
  return ShardedArray(files)
