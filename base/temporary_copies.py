"""Copies of a few files that this process reads, in its temporary folder."""

from __future__ import annotations

import atexit
import functools
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO

from base import temporary_folders

_MOST = 2
_LONGEST_NAME = 80

_numbers = itertools.count()
_copies: OrderedDict[str, Path] = OrderedDict()
_needless: set[str] = set()
# One copy is made at a time, and none is removed before it is open.
_copying = threading.Lock()


def opened(
  key: str, name: str, fetch: Callable[[Path], None], wanted: Callable[[], bool]
) -> IO[bytes] | None:
  """Opens a copy of a file; None if none is wanted. The oldest of more than two is removed.

  Args:
    key: identifies the file's contents.
    name: its name.
    fetch: writes the copy to a path.
    wanted: whether there is to be a copy.
  """
  if key in _needless:
    return None
  if key not in _copies and not wanted():
    _needless.add(key)
    return None
  with _copying:
    if key not in _copies:
      target = _folder() / f"{next(_numbers)}-{name[-_LONGEST_NAME:]}"
      fetch(target)
      _copies[key] = target
    file = _copies[key].open("rb")
    while len(_copies) > _MOST:
      _, old = _copies.popitem(last=False)
      old.unlink(missing_ok=True)  # What has it open reads on.
    return file


@functools.cache
def _folder() -> Path:
  folder = temporary_folders.make("sources-")
  atexit.register(temporary_folders.remove, folder)
  return folder
