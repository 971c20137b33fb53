"""Text that another program tokenized: files of nanoGPT and Megatron-LM, and arrays of ids."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from base import remote_files
from base.file_paths import FilePath
from data.encoding import Example
from data.file_corpora import files_of
from data.files import CorpusError, describe_files
from data.tokenizers import Tokenizer

# Of Megatron-LM's index files (megatron/core/datasets/indexed_dataset.py).
_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
# Tokens that are searched for the end of a document at once.
_BLOCK = 2**22


@dataclasses.dataclass(frozen=True)
class TokenFiles:
  """Files of token ids, of the dataset's tokenizer; documents end with its EOS.

  - `.bin`: ids one after another, of type `dtype`, as nanoGPT writes them;
  - `.bin` with an `.idx` beside it, as Megatron-LM writes them: its documents, whether or not they
    end with EOS;
  - `.npy`: an array of ids of one dimension, or [documents, ids].

  Bytes of text are those that the ids spell.

  Attributes:
    files: a path or glob pattern (`**` crosses folders), or several.
    dtype: of `.bin` files without an index: 'uint16' or 'uint32'.
  """

  files: FilePath | Sequence[FilePath]
  dtype: str = "uint16"

  name = "token-files"

  def __post_init__(self):
    if self.dtype not in ("uint16", "uint32"):
      raise CorpusError(f"dtype={self.dtype!r} must be 'uint16' or 'uint32'.")

  def options(self) -> dict[str, Any]:
    """Returns what `describe` says without a look at the files."""
    return {
      "corpus": self.name,
      "patterns": self.files if isinstance(self.files, str) else list(self.files),
      "dtype": self.dtype,
    }

  def describe(self) -> dict[str, Any]:
    """Returns the options and a digest of the files' names, sizes and times.

    And one of the indexes beside them, which decide what the ids are.
    """
    files = files_of(self)
    found = _indexes(files)
    return (
      self.options()
      | {"files": describe_files(files)}
      | ({"indexes": describe_files(found)} if found else {})
    )

  def total_bytes(self) -> int:
    """Returns the size of the files."""
    return sum(path.stat().st_size for path in files_of(self))

  def token_examples(self, tokenizer: Tokenizer, split: str) -> Iterator[Example]:
    """Yields the documents in the order of the files.

    Raises:
      CorpusError: the split is not 'all', or a file is not of one of these kinds.
    """
    if split != "all":
      raise CorpusError(
        f"split={split!r}: {self.name} has no held-out part of its own. Set the split 'all', and"
        " other files for held-out text."
      )
    lengths = tokenizer.byte_lengths().astype(np.int64)
    for path in files_of(self):
      for ids, ends in self._documents(path, tokenizer.eos_id):
        known = ids[(ids >= 0) & (ids < len(lengths))]
        yield Example(ids, int(lengths[known].sum()), False, None, ends)

  def _documents(self, path: Path, eos_id: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Yields ids, and whether a document ends with them."""
    index = path.with_suffix(".idx")
    if path.suffix == ".npy":
      try:
        array = _array(path)
      except (ValueError, OSError, EOFError) as error:
        raise CorpusError(f"{path} is not an array of ids ({str(error)[:100]}).") from None
      if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise CorpusError(
          f"{path} has {array.ndim} dimensions of {array.dtype}, not one or two of whole numbers."
        )
      for row in array if array.ndim == 2 else (array,):
        yield from _cut(row, eos_id)
    elif path.suffix != ".bin":
      raise CorpusError(f"{path} is neither a .bin nor a .npy file. Correct the path.")
    elif index.is_file():
      yield from _of_megatron(path, index)
    else:
      yield from _cut(_mapped(path, np.dtype(self.dtype).newbyteorder("<")), eos_id)


def _indexes(files: Sequence[Path]) -> list[Path]:
  """Returns the indexes that lie beside files."""
  beside = [path.with_suffix(".idx") for path in files if path.suffix == ".bin"]
  elsewhere = tuple(index for index in beside if remote_files.is_remote(index))
  here = [index for index in beside if not remote_files.is_remote(index) and index.is_file()]
  return [*here, *_remote_indexes(elsewhere)]


@remote_files.until_forgotten
def _remote_indexes(beside: tuple[Path, ...]) -> list[Path]:
  exist = remote_files.at_once(lambda index: index.is_file(), beside)
  return [index for index, exists in zip(beside, exist, strict=True) if exists]


class _RemoteArray:
  """An array of a remote file, read by ranges of its first dimension."""

  def __init__(self, file: remote_files.RemoteFile, dtype: np.dtype, shape: Any, first: int = 0):
    """Takes the shape, and the byte at which the array begins."""
    self._file, self._first = file, first
    self.dtype, self.shape, self.ndim = dtype, tuple(shape), len(shape)
    self._item = dtype.itemsize * math.prod(self.shape[1:])

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, key: slice) -> np.ndarray:
    start, stop, _ = key.indices(len(self))
    with self._file.open(read_ahead=False) as file:
      file.seek(self._first + start * self._item)
      found = file.read((stop - start) * self._item)
    return np.frombuffer(found, self.dtype).reshape(-1, *self.shape[1:])

  def __iter__(self) -> Iterator[np.ndarray]:
    at_once = max(1, _BLOCK // max(1, self._item))
    for start in range(0, len(self), at_once):
      yield from self[start : start + at_once]


def _array(path: Path) -> Any:
  """Opens a .npy file; not by np.load, which also opens archives and pickles."""
  if not isinstance(path, remote_files.RemoteFile):
    return np.lib.format.open_memmap(path, mode="r")
  with path.open() as file:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
      read = np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    if by_columns and len(shape) > 1:
      raise ValueError("it lies in columns: save np.ascontiguousarray(ids)")
    start = file.tell()
  if path.stat().st_size < start + dtype.itemsize * math.prod(shape):
    raise ValueError(f"it is cut off: {shape} ids do not fit into it")
  return _RemoteArray(path, dtype, shape, start)


def _mapped(path: Path, dtype: np.dtype) -> Any:
  size = path.stat().st_size
  if size % dtype.itemsize:
    raise CorpusError(f"{path} has {size} bytes, no multiple of the {dtype.itemsize} of {dtype}.")
  if isinstance(path, remote_files.RemoteFile):
    return _RemoteArray(path, dtype, (size // dtype.itemsize,))
  return np.memmap(path, dtype, "r") if size else np.zeros(0, dtype)


def _cut(ids: Any, eos_id: int) -> Iterator[tuple[np.ndarray, bool]]:
  """Cuts ids after each EOS; a document longer than a block comes in pieces."""
  for first in range(0, len(ids), _BLOCK):
    block = np.asarray(ids[first : first + _BLOCK]).astype(np.int64)
    cuts = np.flatnonzero(block == eos_id) + 1
    parts = np.split(block, cuts)
    for part in parts[:-1]:
      yield part, True
    if len(parts[-1]):
      yield parts[-1], first + _BLOCK >= len(ids)


def _of_megatron(path: Path, index: Path) -> Iterator[tuple[np.ndarray, bool]]:
  wrong = CorpusError(f"{index} is not an index of Megatron-LM (version 1). Replace or remove it.")
  content = index.read_bytes()
  try:
    magic, version, code, sequences, documents = _HEADER.unpack_from(content)
    if (magic, version) != (_MAGIC, 1):
      raise wrong
    dtype = np.dtype(_DTYPES[code])
    sizes = np.frombuffer(content, "<i4", sequences, _HEADER.size)
    places = np.frombuffer(content, "<i8", sequences, _HEADER.size + 4 * sequences)
    ends = np.frombuffer(content, "<i8", documents, _HEADER.size + 12 * sequences)
    starts: np.ndarray = np.floor_divide(places, dtype.itemsize)
  except (struct.error, KeyError, ValueError):
    raise wrong from None
  ids = _mapped(path, dtype)
  outside = np.any(starts < 0) or np.any(sizes < 0) or np.any(starts + sizes > len(ids))
  if outside or np.any(ends < 0) or np.any(ends > sequences):
    raise CorpusError(f"{index} names tokens that {path} does not have. Replace them.")
  for first, last in itertools.pairwise(ends):
    parts = [ids[starts[n] : starts[n] + sizes[n]] for n in range(first, last)]
    if parts:
      yield np.concatenate(parts).astype(np.int64), True
