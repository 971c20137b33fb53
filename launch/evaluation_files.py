"""Stores what an evaluation found in its run directory."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base import paths, small_files
from training import json_files

if TYPE_CHECKING:
  from experiment.run_directory import RunDirectory

FOLDER = "evaluations"
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def keep(run: RunDirectory, name: str, result: Mapping[str, Any], **options: Any) -> Path | None:
  """Writes the result of an evaluation as JSON, and prints where it is.

  Call it after everything is printed: a run that others made may lie on storage that can only be
  read.

  Args:
    run: the run.
    name: the file's name, without its ending.
    result: what is written.
    options: see `json.dumps`.

  Returns:
    the file; None, after a warning, if the run directory can only be read.

  Raises:
    OSError: it cannot be written for another reason, such as a full disk.
  """
  file = run.path / FOLDER / f"{name}.json"
  try:
    file.parent.mkdir(exist_ok=True)
    small_files.replace(file, json_files.dumps(dict(result), indent=2, **options) + "\n")
  except OSError as error:
    if error.errno not in _NOT_WRITABLE:
      raise
    print(
      f"warning: the figures are not stored: {paths.shown(file)} cannot be written "
      f"({error.strerror})",
      file=sys.stderr,
    )
    return None
  print(f"written to {paths.shown(file)}", file=sys.stderr)
  return file
