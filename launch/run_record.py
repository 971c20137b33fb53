"""Whether a run directory's configuration is still the one it was trained under; puts it back if it is not.

The authority is sealed with a checksum: the newest checkpoint, or, from the start of a training until its first
checkpoint, the record that the start wrote.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from launch import gin_source, paths
from launch.command import UserError
from launch.gin_source import ConfigError
from training import checkpoint, checkpoint_identity
from training.checksum import seal, unseal

RECORD_FILE = "record.json"
_SHOWN = 3
_SHOWN_LETTERS = 60


@dataclasses.dataclass(frozen=True)
class Record:
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
  replace(run_dir / RECORD_FILE, json.dumps(seal(contents)) + "\n")


def restore(run_dir: Path, config_file: str, operative_file: str, data_file: str) -> list[str]:
  """Compares the files of a run directory with what is sealed, and puts back what is another.

  Args:
    run_dir: the run's directory.
    config_file, operative_file, data_file: their names. What was there is kept beside it.

  Returns:
    a line for each file that was put back.

  Raises:
    UserError: a file cannot be put back.
  """
  record, found = _read(run_dir), checkpoint_identity.newest_identity(run_dir)
  told = []
  if record is not None and (found is None or record.after >= found[0]):
    config, source = record.config, "the run was started with"
  elif found is not None:
    config, source = found[1]["config"], f"checkpoint {found[0]} was trained under"
  else:
    return []
  if (what := _difference(run_dir / config_file, config)) is not None:
    head = f"# restored: {what}\n"
    told.append(_put_back(run_dir / config_file, head + config, what, source))
  same = record is not None and _values(record.config) == _values(config)
  if same and (what := _difference(run_dir / operative_file, record.operative)) is not None:
    told.append(_put_back(run_dir / operative_file, record.operative, what, source))
  elif (not same and told) or _values_of(run_dir / operative_file) is None:
    # It is written anew from the configuration, which is known to be right.
    # Where it cannot be removed, nobody writes here, and readers have no use for it.
    with contextlib.suppress(OSError):
      (run_dir / operative_file).unlink(missing_ok=True)
  if found is not None and isinstance(found[1].get("data"), dict):
    file = run_dir / data_file
    if (what := _unreadable_json(file)) is not None:
      text = json.dumps(found[1]["data"], indent=2) + "\n"
      told.append(_put_back(file, text, what, f"checkpoint {found[0]} was trained on"))
  return told


def tell(lines: list[str]) -> None:
  """Prints what was put back."""
  for line in lines:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def replace(file: Path, text: str) -> None:
  """Writes a file at once: a reader sees the old or the new one, also after a crash."""
  new = file.with_name(f"{file.name}.{os.getpid()}.new")
  try:
    new.write_text(text, encoding="utf-8")
    new.replace(file)
  finally:
    new.unlink(missing_ok=True)


def _read(run_dir: Path) -> Record | None:
  try:
    record = Record(**unseal(json.loads((run_dir / RECORD_FILE).read_bytes())))
  except (OSError, ValueError, TypeError, RecursionError):
    return None
  return record


def _difference(file: Path, sealed: str) -> str | None:
  """How the values of a gin file differ from sealed ones, in words; None if they do not."""
  if not file.exists():
    return "it was gone"
  now, was = _values_of(file), _values(sealed)
  if now is None:
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
    return _values(file.read_text(encoding="utf-8"))
  except (OSError, UnicodeError, ConfigError):
    return None


def _values(text: str) -> dict[str, str]:
  """What gin text binds and imports, as text; where it came from does not count."""
  source = gin_source.read_text(text)
  values = {f"import {item.name}": item.module for item in source.imports}
  for item in source.statements:
    name = f"{item.scope}/{item.selector}.{item.parameter}".strip("/.")
    values[name] = repr(item.value)
  return values


def _unreadable_json(file: Path) -> str | None:
  if not file.exists():
    return "it was gone"
  try:
    found: Any = json.loads(file.read_bytes())
  except (OSError, ValueError, RecursionError):
    return "it could not be read"
  return None if isinstance(found, dict) else "it could not be read"


def _put_back(file: Path, text: str, what: str, source: str) -> str:
  """Writes a file anew, keeps the old one beside it, and says so in a line."""
  kept = paths.free(file.with_name(file.name + ".damaged"))
  try:
    if file.exists():
      file.replace(kept)
    replace(file, text)
  except OSError as error:
    raise UserError(
      f"{paths.shown(file)} is not what {source} ({what}), and cannot be put back: {error.strerror}. "
      "Make the folder writable, or copy the run."
    ) from None
  return (
    f"{paths.shown(file)} was not what {source}: {what}. It is put back; to change a run, give "
    "--gin.NAME=VALUE with --resume=force"
  )


def _short(text: str) -> str:
  return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}..."
