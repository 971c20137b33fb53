"""Lets Orbax write to folders whose names have brackets, `*` or `?`.

Orbax finds what each process has written by a pattern below the checkpoint's folder
(`_merge_ocdbt`). The paths of etils 1.15 take the folder's own name for a part of the pattern: in
`runs [3]`, nothing is found, and the checkpoint is finished without its arrays, in silence. A test
saves and restores in such a folder.
"""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Iterator
from typing import Any


@functools.cache
def enable() -> None:
  """Replaces `glob` of etils' paths for local folders, for the whole process."""
  from etils.epath import gpath

  paths: Any = gpath._GPath
  of_remote = paths.glob

  def of_any(self: Any, pattern: str) -> Iterator[Any]:
    if self._uri_scheme:
      yield from of_remote(self, pattern)
      return
    for found in glob.glob(os.path.join(glob.escape(os.fspath(self)), pattern)):
      yield self._new(found)

  paths.glob = of_any
