"""Detects and restores files of a run directory that changed since training.

The correct contents have a checksum: they are in the newest checkpoint, or, before the first one,
in the record written at the start. Readers use these contents and change no file, since another
process may be training there. The process that holds the directory's lock restores the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from base import paths, small_files
from base.errors import UserError
from config import source as gin_source
from config.place import ConfigError
from training import checkpoint, checkpoint_identity
from training.checksum import seal, unseal

RECORD_FILE = "record.json"
_SHOWN = 3
_SHOWN_LETTERS = 60


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """The configuration that a run was started with.

  Attributes:
    config: the configuration as gin.
    operative: the values in force as gin.
    after: step of the newest checkpoint at that time; -1 if there was none.
  """

  config: str
  operative: str
  after: int


def write(run_dir: Path, config: str, operative: str) -> None:
  """Writes the record of a training's start, before its other files."""
  newest = max(checkpoint.available_steps(run_dir), default=-1)
  contents = {"config": config, "operative": operative, "after": newest}
  small_files.replace(run_dir / RECORD_FILE, json.dumps(seal(contents)) + "\n")


@dataclasses.dataclass(frozen=True)
class Fault:
  """A file of a run directory that changed since training.

  Attributes:
    file: the file.
    text: the correct contents; None if unknown: the file is then deleted, and written again later.
    what: how it differs, in words.
    source: where the correct contents come from, in words.
  """

  file: Path
  text: str | None
  what: str = ""
  source: str = ""

  def __str__(self) -> str:
    return f"{paths.shown(self.file)} was changed: {self.what} ({self.source})"


def judge(run_dir: Path, config_file: str, operative_file: str, data_file: str) -> list[Fault]:
  """Compares the files of a run directory with their correct contents; changes nothing.

  Args:
    run_dir: the run's directory.
    config_file, operative_file, data_file: names of the files.

  Raises:
    OSError: a file exists and could not be read this time, or a checkpoint's identity could not.
  """
  record, found = _read(run_dir), checkpoint_identity.newest_identity(run_dir)
  faults = []
  if record is not None and (found is None or record.after >= found[0]):
    config, source = record.config, "compared with the start of the run"
  elif found is not None:
    config, source = found[1]["config"], f"compared with checkpoint {found[0]}"
  else:
    return []
  sealed = _sealed_values(config)
  if sealed is None:
    return []
  if (what := _difference(run_dir / config_file, sealed)) is not None:
    text = f"# restored: {what}\n{config}"
    faults.append(Fault(run_dir / config_file, text, what, source))
  operative = None
  if record is not None and _sealed_values(record.config) == sealed:
    operative = _sealed_values(record.operative)
  if record is not None and operative is not None:
    if (what := _difference(run_dir / operative_file, operative)) is not None:
      faults.append(Fault(run_dir / operative_file, record.operative, what, source))
  elif faults or _values_of(run_dir / operative_file) is None:
    # It is written again from the configuration, which is correct.
    faults.append(Fault(run_dir / operative_file, None))
  if found is not None and isinstance(found[1].get("data"), dict):
    file = run_dir / data_file
    if (what := _unreadable_json(file)) is not None:
      text = json.dumps(found[1]["data"], indent=2) + "\n"
      source = f"compared with checkpoint {found[0]}"
      faults.append(Fault(file, text, what, source))
  return faults


def repair(faults: Iterable[Fault]) -> None:
  """Restores files in a directory that this process has locked; keeps and reports changed ones.

  Raises:
    UserError: a file cannot be restored.
  """
  for fault in faults:
    if fault.text is None:
      with contextlib.suppress(OSError):
        fault.file.unlink(missing_ok=True)
    else:
      _put_back(fault, fault.text)
      _tell(f"{fault}. It is restored; to change a run, give --gin.NAME=VALUE with --resume=force")


def tell_of_reading(fault: Fault) -> None:
  """Warns that a file changed and its correct contents are used, for readers of a run."""
  _tell(
    f"{fault}. The change is ignored and the file left as it is; to change a run, train with "
    "--gin.NAME=VALUE and --resume=force"
  )


def _tell(line: str) -> None:
  print(f"warning: {line}", file=sys.stderr, flush=True)


def _read(run_dir: Path) -> RunRecord | None:
  try:
    contents = small_files.read(run_dir / RECORD_FILE)
    record = RunRecord(**unseal(json.loads(contents or b"")))
  except (ValueError, TypeError, RecursionError):
    return None
  kinds = type(record.config), type(record.operative), type(record.after)
  return record if kinds == (str, str, int) else None


def _difference(file: Path, was: dict[str, str]) -> str | None:
  """Describes how the values of a gin file differ from the correct ones; None if they do not."""
  try:
    contents = small_files.read(file)
    if contents is None:
      return "the file is missing"
    now = _values(contents.decode("utf-8"))
  except ValueError:  # Includes ConfigError and UnicodeError.
    return "the file is unreadable"
  names = [name for name in sorted(was.keys() | now.keys()) if was.get(name) != now.get(name)]
  if not names:
    return None
  shown = [
    f"{_short(name)} was {_short(now.get(name, 'absent'))}, not {_short(was.get(name, 'absent'))}"
    for name in names[:_SHOWN]
  ]
  more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return ", ".join(shown) + more


def _values_of(file: Path) -> dict[str, str] | None:
  try:
    return _values((small_files.read(file) or b"\xff").decode("utf-8"))
  except ValueError:
    return None


def _sealed_values(text: str) -> dict[str, str] | None:
  """Parses text with a valid checksum; None if it is not gin: the checksum is no signature."""
  try:
    return _values(text)
  except ConfigError:
    return None


def _values(text: str) -> dict[str, str]:
  """Returns the bindings and imports of gin text as text, without their places."""
  source = gin_source.read_alone(text)
  values = {f"import {item.name}": item.module for item in source.imports}
  for item in source.statements:
    name = f"{item.scope}/{item.selector}.{item.parameter}".strip("/.")
    values[name] = repr(item.value)
  return values


def _unreadable_json(file: Path) -> str | None:
  try:
    contents = small_files.read(file)
    if contents is None:
      return "the file is missing"
    found: Any = json.loads(contents)
  except (ValueError, RecursionError):
    return "the file is unreadable"
  return None if isinstance(found, dict) else "the file is unreadable"


def _put_back(fault: Fault, text: str) -> None:
  """Restores a file, and keeps the old one under another name."""
  file = fault.file
  kept = paths.free(file.with_name(file.name + ".damaged"))
  try:
    if file.exists():
      file.replace(kept)
    small_files.replace(file, text)
  except OSError as error:
    raise UserError(
      f"{fault}. It cannot be restored: {error.strerror}. Make the folder writable, or copy the "
      "run."
    ) from None


def _short(text: str) -> str:
  return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}..."
