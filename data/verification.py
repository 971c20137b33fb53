"""Verifies row files: completely once, and a sample whenever they are opened."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

from base import buckets, commands, small_files
from data.manifest import MANIFEST_FILE, REMEDY, Manifest, RowFileError, sha256_of
from data.rows import RowFiles

# Next to the rows: the verified files by size and time, with a digest of some of their blocks.
VERIFIED_FILE = "verified.json"

_BLOCKS = 16
_BLOCK = 2**16
_SAMPLED_ROWS = 64
_SAMPLED_IN_BUCKET = 4
# More bytes take longer than seconds to read: a line then says why the start is slow.
_TOLD_BYTES = 300 * 10**6
# More bytes are not read at a start.
_MOST_BYTES_READ = 64 * 10**9
# Of more files than this, each start compares the blocks of so many.
_SAMPLED_FILES = 48


def verify(rows: RowFiles, *, completely: bool = False) -> RowFiles:
  """Returns the rows if they are unchanged since they were written.

  A file with a new size or time is read completely and its sha256 compared with the manifest's. Of
  a verified file only some blocks are, which finds faults of disks and copies; of many files, those
  of some files, at each start of others. The record of verified files is next to the rows, else in
  the user's cache folder. If neither is writable, or the new files have more than 64 GB, they are
  only sampled, since a start would take too long, and a line on stderr says so. Of rows in a
  bucket, a few are checked unless all are asked for.

  Args:
    rows: the opened rows.
    completely: read all files, also verified ones.

  Raises:
    RowFileError: a file changed after it was written, or has invalid ids.
  """
  if buckets.in_bucket(rows.directory):
    if completely:
      _read_through(rows, list(rows.manifest.files))
    # The service has checksums of its own, and each block is a request.
    for first in range(0, len(rows), max(1, len(rows) // _SAMPLED_IN_BUCKET)):
      rows.check_rows(first, 1)
    return rows
  records = {path: _remembered(path) for path in _record_files(rows.directory)}
  found, unknown = {}, []
  sampled = _sampled(list(rows.manifest.files))
  for name, file in rows.manifest.files.items():
    path = rows.directory / name
    state = _state(path)
    known = [record[name] for record in records.values() if _is_of(record.get(name), state)]
    if completely or not known:
      unknown.append(name)
      continue
    if name not in sampled:
      found[name] = known[0]
      continue
    found[name] = entry(path, file.sha256)
    if found[name] not in known:
      raise RowFileError(
        f"{path} changed after it was verified, although its size and time are the same: a disk "
        f"may be failing. {REMEDY}"
      )
  # Written first, to know whether the verification can be recorded.
  size = sum(rows.manifest.files[name].bytes for name in unknown)
  record = next((path for path in records if _remember(path, found)), None) if unknown else None
  if unknown and size > _MOST_BYTES_READ and not completely:
    print(
      f"{rows.directory}: only a sample of {size / 1e9:,.0f} GB of rows was checked; to check"
      f" all once: {commands.line('prepare')} --verify with the same gin files",
      file=sys.stderr,
    )
  elif record or completely:
    _read_through(rows, unknown)
    if record:
      _remember(
        record,
        found | {n: entry(rows.directory / n, rows.manifest.files[n].sha256) for n in unknown},
      )
  elif unknown:
    print(
      f"{rows.directory}: only a sample of the rows was checked, because neither this folder nor "
      "your cache folder is writable. Set XDG_CACHE_HOME to a writable folder to check all once.",
      file=sys.stderr,
    )
  for first in range(0, len(rows), max(1, len(rows) // _SAMPLED_ROWS)):
    rows.check_rows(first, 1)
  return rows


def record(directory: Path, manifest: Manifest) -> None:
  """Records new files as verified; their writer has just computed the sha256."""
  record_entries(
    directory, {name: entry(directory / name, file.sha256) for name, file in manifest.files.items()}
  )


def record_entries(directory: Path, entries: dict[str, dict[str, Any]]) -> None:
  """Records the `entry` of each file of a directory."""
  _remember(directory / VERIFIED_FILE, entries)


def _sampled(names: list[str]) -> set[str]:
  """Returns the files of which blocks are compared: all, or some that lie evenly apart."""
  if len(names) <= _SAMPLED_FILES:
    return set(names)
  first = secrets.randbelow(len(names))
  apart = len(names) / _SAMPLED_FILES
  return {names[(first + int(n * apart)) % len(names)] for n in range(_SAMPLED_FILES)}


def _read_through(rows: RowFiles, names: list[str]) -> None:
  files = rows.manifest.files
  size = sum(files[name].bytes for name in names)
  if size >= _TOLD_BYTES:
    print(f"checking {size / 1e9:.1f} GB of rows in {rows.directory} once", file=sys.stderr)
  for name in names:
    files[name].verify(rows.directory / name)


def _record_files(directory: Path) -> list[Path]:
  """Returns the possible records: next to the rows, and in the user's cache folder."""
  files = [directory / VERIFIED_FILE]
  given = os.environ.get("XDG_CACHE_HOME", "")
  with contextlib.suppress(OSError, RuntimeError):  # No home directory.
    folder = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    content = f"{directory.resolve()}\n{sha256_of(directory / MANIFEST_FILE)}"
    name = hashlib.sha256(os.fsencode(content)).hexdigest()[:32]
    files.append(folder / "griffin-jax" / "verified" / f"{name}.json")
  return files


def _state(path: Path) -> dict[str, int]:
  status = path.stat()
  return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _is_of(entry: Any, state: dict[str, int]) -> bool:
  """Whether a record is of a file with this size and time."""
  return isinstance(entry, dict) and state.items() <= entry.items()


def entry(path: Path, sha256: str) -> dict[str, Any]:
  """Returns what a record says of a file whose content has this sha256."""
  return _state(path) | {"sha256": sha256, "sample": _sample(path)}


def _sample(path: Path) -> str:
  """Returns a digest of evenly spaced blocks, including the first and the last."""
  digest = hashlib.sha256()
  last = max(0, path.stat().st_size - _BLOCK)
  with path.open("rb") as file:
    for start in sorted({last * n // (_BLOCKS - 1) for n in range(_BLOCKS)}):
      file.seek(start)
      digest.update(file.read(_BLOCK))
  return digest.hexdigest()


def _remembered(file: Path) -> dict[str, Any]:
  try:
    values = json.loads(small_files.read(file) or b"")
  except (OSError, ValueError, RecursionError):
    return {}  # Everything is read again.
  return values if isinstance(values, dict) else {}


def _remember(file: Path, found: dict[str, Any]) -> bool:
  """Writes the record atomically; returns whether it could."""
  partial = None
  try:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
      json.dump(found, stream)
    os.chmod(partial, 0o644)
    os.replace(partial, file)
  except OSError:
    if partial:
      Path(partial).unlink(missing_ok=True)
    return False
  return True
