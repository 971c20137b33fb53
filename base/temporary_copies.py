"""Copies of a few files that this process reads, in its temporary folder."""

from __future__ import annotations

import atexit
import functools
import itertools
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

_MOST = 2
_LONGEST_NAME = 80

_numbers = itertools.count()
_copies: OrderedDict[str, Path | None] = OrderedDict()


def of(
  key: str, name: str, fetch: Callable[[Path], None], wanted: Callable[[], bool]
) -> Path | None:
  """Returns a copy of a file; None if none is wanted. The oldest of more than two is removed.

  Args:
    key: identifies the file's contents.
    name: its name.
    fetch: writes the copy to a path.
    wanted: whether there is to be a copy; asked once.
  """
  if key not in _copies:
    target = None
    if wanted():
      target = _folder() / f"{next(_numbers)}-{name[-_LONGEST_NAME:]}"
      fetch(target)
    _copies[key] = target
    while sum(map(bool, _copies.values())) > _MOST:
      old = next(name for name, path in _copies.items() if path)
      path = _copies.pop(old)
      if path is not None:
        path.unlink(missing_ok=True)  # What has it open reads on.
  return _copies[key]


@functools.cache
def _folder() -> Path:
  folder = Path(tempfile.mkdtemp(prefix="sources-"))
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder
