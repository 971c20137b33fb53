"""Whether the files of a run directory are still those it was trained with, and what they should
hold.

The authority is sealed with a checksum: the newest checkpoint, or, from the start of a training
until its first checkpoint, the record that the start wrote. Who reads a run goes by what is sealed
and changes nothing: another process may be training there. Who holds the directory puts its files
back.
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
  """What a run was started with.

  Attributes:
    config: its configuration as gin.
    operative: the values in force.
    after: newest checkpoint at that time; -1 if there was none.
  """

  config: str
  operative: str
  after: int


def write(run_dir: Path, config: str, operative: str) -> None:
  """Records what a training starts with, before anything else says so."""
  newest = max(checkpoint.available_steps(run_dir), default=-1)
  contents = {"config": config, "operative": operative, "after": newest}
  small_files.replace(run_dir / RECORD_FILE, json.dumps(seal(contents)) + "\n")


@dataclasses.dataclass(frozen=True)
class Fault:
  """A file of a run directory that is not what the run was trained with.

  Attributes:
    file: the file.
    text: what it should hold; None if that is only known once it is written anew, and it must go
      until then.
    what: how it differs, in words.
    source: what says so, in words.
  """

  file: Path
  text: str | None
  what: str = ""
  source: str = ""

  def __str__(self) -> str:
    return f"{paths.shown(self.file)} was not what {self.source}: {self.what}"


def judge(run_dir: Path, config_file: str, operative_file: str, data_file: str) -> list[Fault]:
  """Compares the files of a run directory with what is sealed; changes nothing.

  Args:
    run_dir: the run's directory.
    config_file, operative_file, data_file: their names.

  Raises:
    OSError: a file is there and could not be read this time, or what a checkpoint says of itself.
  """
  record, found = _read(run_dir), checkpoint_identity.newest_identity(run_dir)
  faults = []
  if record is not None and (found is None or record.after >= found[0]):
    config, source = record.config, "the run was started with"
  elif found is not None:
    config, source = found[1]["config"], f"checkpoint {found[0]} was trained under"
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
    # It is written anew from the configuration, which is known to be right.
    faults.append(Fault(run_dir / operative_file, None))
  if found is not None and isinstance(found[1].get("data"), dict):
    file = run_dir / data_file
    if (what := _unreadable_json(file)) is not None:
      text = json.dumps(found[1]["data"], indent=2) + "\n"
      source = f"checkpoint {found[0]} was trained on"
      faults.append(Fault(file, text, what, source))
  return faults


def repair(faults: Iterable[Fault]) -> None:
  """Puts files back, in a directory that this process holds; what was there is kept beside them,
  and told.

  Raises:
    UserError: a file cannot be put back.
  """
  for fault in faults:
    if fault.text is None:
      with contextlib.suppress(OSError):
        fault.file.unlink(missing_ok=True)
    else:
      _put_back(fault, fault.text)
      _tell(f"{fault}. It is put back; to change a run, give --gin.NAME=VALUE with --resume=force")


def tell_of_reading(fault: Fault) -> None:
  """Says that a file is read as it should be, by who may not put it back."""
  _tell(
    f"{fault}. The latter is what is read, and the file is left as it is; to change a run, train "
    "with --gin.NAME=VALUE and "
    "--resume=force"
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
  """How the values of a gin file differ from sealed ones, in words; None if they do not."""
  try:
    contents = small_files.read(file)
    if contents is None:
      return "it was gone"
    now = _values(contents.decode("utf-8"))
  except ValueError:  # ConfigError and UnicodeError are some.
    return "it could not be read"
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
  """What sealed text says; None if it says nothing: anybody can seal."""
  try:
    return _values(text)
  except ConfigError:
    return None


def _values(text: str) -> dict[str, str]:
  """What gin text binds and imports, as text; where it came from does not count."""
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
      return "it was gone"
    found: Any = json.loads(contents)
  except (ValueError, RecursionError):
    return "it could not be read"
  return None if isinstance(found, dict) else "it could not be read"


def _put_back(fault: Fault, text: str) -> None:
  """Writes a file anew, and keeps the old one beside it."""
  file = fault.file
  kept = paths.free(file.with_name(file.name + ".damaged"))
  try:
    if file.exists():
      file.replace(kept)
    small_files.replace(file, text)
  except OSError as error:
    raise UserError(
      f"{fault}. It cannot be put back: {error.strerror}. Make the folder writable, or copy the "
      "run."
    ) from None


def _short(text: str) -> str:
  return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}..."
