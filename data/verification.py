"""Compares row files with their manifest: all of them once, a sample whenever they are opened."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from data.manifest import REMEDY, RowFileError
from data.rows import RowFiles

# Beside the rows: which files were read through, by size and time, and a digest of some of their blocks.
VERIFIED_FILE = "verified.json"

_BLOCKS = 16
_BLOCK = 2**16
_SAMPLED_ROWS = 64


def verify(rows: RowFiles) -> RowFiles:
  """Returns the rows if they are as they were written.

  A file whose size or time is not the remembered one is read through, and its sha256 compared with the
  manifest's. Of the others some blocks are, which finds what a disk or a copy changed there. Where nothing
  can be remembered (a directory that may only be read), all is read each time.

  Raises:
    RowFileError: a file changed after it was written, or holds ids that no packer writes.
  """
  remembered = _remembered(rows.directory)
  found = {}
  for name, file in rows.manifest.files.items():
    path = rows.directory / name
    state = _state(path)
    known = remembered.get(name)
    if known == state | {"sha256": file.sha256, "sample": _sample(path)}:
      found[name] = known
      continue
    if isinstance(known, dict) and state.items() <= known.items():
      raise RowFileError(
        f"{path} changed after it was verified, though its size and time are the same: a disk may be failing."
        f" {REMEDY}"
      )
    file.verify(path)
    found[name] = state | {"sha256": file.sha256, "sample": _sample(path)}
  for first in range(0, len(rows), max(1, len(rows) // _SAMPLED_ROWS)):
    rows.check_rows(first, 1)
  if found != remembered:
    _remember(rows.directory, found)
  return rows


def _state(path: Path) -> dict[str, int]:
  status = path.stat()
  return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _sample(path: Path) -> str:
  """Returns a digest of blocks at even distances, the first and the last among them."""
  digest = hashlib.sha256()
  last = max(0, path.stat().st_size - _BLOCK)
  with path.open("rb") as file:
    for start in sorted({last * n // (_BLOCKS - 1) for n in range(_BLOCKS)}):
      file.seek(start)
      digest.update(file.read(_BLOCK))
  return digest.hexdigest()


def _remembered(directory: Path) -> dict[str, Any]:
  try:
    values = json.loads((directory / VERIFIED_FILE).read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError):
    return {}  # All is read again.
  return values if isinstance(values, dict) else {}


def _remember(directory: Path, found: dict[str, Any]) -> None:
  """Writes what was found, at once; where that is not possible the rows are read through next time."""
  with contextlib.suppress(OSError):
    descriptor, partial = tempfile.mkstemp(dir=directory, prefix=f".{VERIFIED_FILE}.")
    try:
      with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(found, file)
      os.chmod(partial, 0o644)
      os.replace(partial, directory / VERIFIED_FILE)
    except OSError:
      Path(partial).unlink(missing_ok=True)
