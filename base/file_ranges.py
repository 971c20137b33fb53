"""Files that are read in ranges, as files of Python and as text that is searched."""

from __future__ import annotations

import functools
import io
import os
from typing import Any, Protocol

# A range that is read at once: small at a file's beginning, of which often no more is needed, and
# twice as much each time while it is read on.
FIRST_RANGE, LARGEST_RANGE = 2**16, 2**23
BLOCK = 2**22


class HasRanges(Protocol):
  """A file whose bytes can be read from one place to another."""

  def stat(self) -> Any:
    """Returns its size in bytes as `st_size`."""
    ...

  def range(self, start: int, stop: int) -> bytes:
    """Reads the bytes from `start` to `stop`."""
    ...


class Ranges(io.RawIOBase):
  """A file that is read in ranges."""

  def __init__(self, file: HasRanges, read_ahead: bool):
    super().__init__()
    self._file, self._read_ahead = file, read_ahead
    self._size = file.stat().st_size
    self._place = 0
    self._block, self._start = b"", 0  # what was read last, and where it begins
    self._next = FIRST_RANGE

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._place

  @property
  def name(self) -> str:
    """For gzip, which names its file in errors."""
    return str(self._file)

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
    self._place = max(0, base + offset)
    return self._place

  def readinto(self, buffer: Any) -> int:
    wanted = min(len(buffer), self._size - self._place)
    if wanted <= 0:
      return 0
    if not self._read_ahead:
      buffer[:wanted] = self._file.range(self._place, self._place + wanted)
      self._place += wanted
      return wanted
    skipped = self._place - self._start
    if not 0 <= skipped < len(self._block):
      goes_on = skipped == len(self._block)
      self._next = min(2 * self._next, LARGEST_RANGE) if goes_on else FIRST_RANGE
      stop = min(self._place + max(wanted, self._next), self._size)
      self._block, self._start = self._file.range(self._place, stop), self._place
      skipped = 0
    part = self._block[skipped : skipped + wanted]
    buffer[: len(part)] = part
    self._place += len(part)
    return len(part)


class RangedText:
  """The bytes of a remote file, searched and cut as a memory map is; read in blocks."""

  def __init__(self, file: HasRanges):
    """Reads nothing yet."""
    self._file, self._size = file, file.stat().st_size
    self._blocks = functools.lru_cache(4)(self._block)

  def _block(self, number: int) -> bytes:
    return self._file.range(number * BLOCK, min((number + 1) * BLOCK, self._size))

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, key: Any) -> Any:
    if isinstance(key, slice):
      start, stop, _ = key.indices(self._size)
      numbers = range(start // BLOCK, -(-stop // BLOCK)) if stop > start else ()
      joined = b"".join(map(self._blocks, numbers))
      skipped = start % BLOCK
      return joined[skipped : skipped + max(0, stop - start)]
    return self._blocks(key // BLOCK)[key % BLOCK]

  def _windows(self, size: int, start: int, stop: int | None) -> list[tuple[int, int]]:
    """Returns ranges that overlap by less than `size` bytes, so that no match is cut."""
    end = self._size if stop is None else min(stop, self._size)
    edges = [max(start, 0), *range((max(start, 0) // BLOCK + 1) * BLOCK, end, BLOCK)]
    return [(edge, min(edge - edge % BLOCK + BLOCK + size - 1, end)) for edge in edges]

  def find(self, sub: bytes, start: int = 0, stop: int | None = None) -> int:
    """As `bytes.find`, with places from 0 on."""
    for first, last in self._windows(len(sub), start, stop):
      if (found := self[first:last].find(sub)) >= 0:
        return first + found
    return -1

  def rfind(self, sub: bytes, start: int = 0, stop: int | None = None) -> int:
    """As `bytes.rfind`, with places from 0 on."""
    for first, last in reversed(self._windows(len(sub), start, stop)):
      if (found := self[first:last].rfind(sub)) >= 0:
        return first + found
    return -1
