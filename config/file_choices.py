"""Which gin file a choice of a comparison names: the same for whoever reads it and whoever judges
it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from config import source


def file_of(choice: str, folder: Path) -> Path:
  """The gin file that a choice names.

  Args:
    choice: a path from `folder`, from the working directory or from the gin folder.
    folder: where the comparison was launched first.

  Raises:
    ConfigError: there is none.
  """
  with contextlib.suppress(OSError, ValueError):  # A name too long, or with a NUL: told below.
    if (folder / choice).is_file():
      return (folder / choice).resolve()
  return source.find(choice, None, None)
