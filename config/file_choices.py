"""Finds gin files: that of a comparison's choice, and those that set a macro."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from config import source
from config.place import GIN_ROOT


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


def files_that_set(macro: str, root: Path = GIN_ROOT) -> list[str]:
  """Lists the files of the gin folder that set a macro; not those of runs and comparisons."""
  setting = re.compile(rf"^(default/)?{re.escape(macro)} *=", re.MULTILINE)
  return [
    str(path.relative_to(root))
    for path in sorted(root.rglob("*.gin"))
    if path.parent not in (root, root / "runs")
    and "compare" not in path.relative_to(root).parts
    and setting.search(path.read_text(encoding="utf-8"))
  ]
