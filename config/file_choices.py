"""Finds the gin file that a choice of a comparison names, for the trust check and the loader."""

from __future__ import annotations

import contextlib
from pathlib import Path

from config import source


def file_of(choice: str, folder: Path) -> Path:
  """Finds the gin file that a choice names.

  Args:
    choice: a path from `folder`, from the working directory or from the gin folder.
    folder: the directory in which the comparison was first launched.

  Raises:
    ConfigError: the file does not exist.
  """
  with contextlib.suppress(OSError, ValueError):  # A name too long, or with a NUL: raised below.
    if (folder / choice).is_file():
      return (folder / choice).resolve()
  return source.find(choice, None, None)
