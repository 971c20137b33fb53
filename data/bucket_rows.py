"""Row files in a bucket: read in blocks, which a folder of this machine keeps."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from base import buckets
from data.manifest import REMEDY, ArrayFile, RowFileError
from data.shards import ShardedArray

# Relative to the working directory, as the rows' own cache.
FOLDER = "cache/blocks"
# A request for less takes hardly less time.
BLOCK_BYTES = 2**20
# Each array keeps so many blocks open.
_OPEN_BLOCKS = 192


class BlockCache:
  """A folder with blocks of objects; the blocks that were not opened for longest are removed.

  Processes may share the folder: each removes for itself, and a removed block is read again.
  """

  def __init__(self, folder: Path, most_bytes: int):
    """Sets the folder, which is made when it is needed, and the most bytes of blocks in it."""
    self._folder, self._most_bytes = folder, most_bytes
    self._bytes: int | None = None  # not counted yet
    self._lock = threading.Lock()

  def open(self, key: str, read: Any) -> io.FileIO | io.BytesIO:
    """Opens a block; makes it by `read()`, which returns its bytes, if it is not there."""
    file = self._folder / key[:2] / key
    with contextlib.suppress(OSError):
      opened = io.FileIO(file)
      with contextlib.suppress(OSError):
        os.utime(file)  # now the last to be removed
      return opened
    contents = read()
    try:
      file.parent.mkdir(parents=True, exist_ok=True)
      partial = file.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}")
      partial.write_bytes(contents)
      opened = io.FileIO(partial)
      partial.replace(file)
      self._make_room(len(contents))
      return opened
    except OSError:
      return io.BytesIO(contents)  # a full disk: it is read again next time

  def _make_room(self, added: int) -> None:
    with self._lock:
      if self._bytes is not None:
        self._bytes += added
        if self._bytes <= self._most_bytes:
          return
      found = []
      for path in self._folder.glob("*/*"):
        with contextlib.suppress(OSError):
          status = path.stat()
          found.append((status.st_mtime_ns, status.st_size, path))
      total = sum(size for _, size, _ in found)
      # Down to nine tenths, so that it is not done for each block.
      if total > self._most_bytes:
        for _, size, path in sorted(found):
          if total <= 0.9 * self._most_bytes:
            break
          with contextlib.suppress(OSError):
            path.unlink()
            total -= size
      self._bytes = total


class BucketArray(ShardedArray):
  """An array [N, ...] in files of a bucket; rows are read from blocks in a `BlockCache`."""

  def __init__(self, files: Sequence[tuple[Path, ArrayFile]], cache: BlockCache):
    """Takes the files in the order of their rows; reads none."""
    super().__init__(files)
    self._cache = cache
    self._blocks = functools.lru_cache(_OPEN_BLOCKS)(self._block)

  def _block(self, number: int, block: int) -> io.FileIO | io.BytesIO:
    path, file = self._files[number]
    start, end = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, file.bytes)

    def read() -> bytes:
      with buckets.told(path):
        found = cast(Any, path)._fs.cat_file(cast(Any, path)._key, start=start, end=end)
      if len(found) != end - start:
        raise RowFileError(
          f"{path} has {len(found)} bytes from byte {start} on, its manifest expects"
          f" {end - start}. {REMEDY}"
        )
      return found

    # The contents are named, so that another object at the same place has other blocks.
    key = hashlib.sha256(f"{path}\n{file.sha256}\n{block}\n{BLOCK_BYTES}".encode()).hexdigest()
    return self._cache.open(key, read)

  def _read(self, number: int, start: int, stop: int) -> np.ndarray:
    """Reads rows of a file."""
    offset, end = start * self._row_bytes, stop * self._row_bytes
    parts = []
    while offset < end:
      block, skipped = divmod(offset, BLOCK_BYTES)
      size = min(end - offset, BLOCK_BYTES - skipped)
      opened = self._blocks(number, block)
      if isinstance(opened, io.BytesIO):
        part = opened.getvalue()[skipped : skipped + size]
      else:
        part = os.pread(opened.fileno(), size, skipped)
      if len(part) != size:
        raise RowFileError(
          f"a block of {self._files[number][0]} in {FOLDER} is damaged. Remove it."
        )
      parts.append(part)
      offset += size
    array = np.frombuffer(b"".join(parts), self.dtype.newbyteorder("<"))
    return array.reshape(stop - start, *self.shape[1:])


@functools.cache
def shared_cache(most_bytes: int) -> BlockCache:
  """Returns the cache in the working directory."""
  return BlockCache(Path(FOLDER).absolute(), most_bytes)
