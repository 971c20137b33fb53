"""What a run directory holds besides metrics and checkpoints: its configuration and vocabulary."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from pathlib import Path
from typing import Any

from data import vocabularies
from data.vocabularies import Vocabulary, VocabularyError
from launch import gin_source, paths, trust_check
from launch.command import UserError
from launch.config import Config

CONFIG_FILE = "config.gin"
OPERATIVE_FILE = "operative_config.gin"
DATA_FILE = "data.json"


@dataclasses.dataclass(frozen=True)
class Difference:
  """One value that is not what it was; None where there is or was no such value."""

  name: str
  old: str | None
  new: str | None

  def __str__(self) -> str:
    if self.old is None:
      return f"  {self.name} = {self.new} is new"
    if self.new is None:
      return f"  {self.name} = {self.old} is gone"
    return f"  {self.name}: {self.old} -> {self.new}"


@dataclasses.dataclass(frozen=True)
class RunDirectory:
  """A folder of one run."""

  path: Path

  def __str__(self) -> str:
    """The path as a reader would type it."""
    return paths.shown(self.path)

  @property
  def config_file(self) -> Path:
    """The configuration, in one gin file."""
    return self.path / CONFIG_FILE

  def holds_run(self) -> bool:
    """Whether a run was started here."""
    return self.config_file.is_file()

  def require_run(self) -> None:
    """Raises UserError if no run was started here."""
    if not self.holds_run():
      near = sorted(paths.shown(f.parent) for f in self.path.parent.glob(f"*/{CONFIG_FILE}"))
      hint = f" There is {', '.join(near[:8])}." if near else ""
      raise UserError(f"{self} holds no run: it has no {CONFIG_FILE}.{hint}")

  def differences(self, config: Config) -> list[Difference]:
    """How a configuration differs from that of the run, in values in force.

    A parameter that the run did not have, at its default, is no difference. Neither is a path under
    which nothing is found any more, nor where rows are kept: the rows themselves are compared.
    """
    file = self.path / OPERATIVE_FILE
    if not file.is_file():
      return []
    old = _values(gin_source.read_file(file))
    new = _values(gin_source.read_text(config.operative_text()))
    defaults, marks = config.default_names(), config.paths()
    return [
      Difference(name, _text(old, name), _text(new, name))
      for name in sorted(old.keys() | new.keys())
      if _text(old, name) != _text(new, name)
      and not (name not in old and name in defaults)
      and not (name in marks and (not marks[name].decides or _moved(old.get(name), new.get(name))))
    ]

  def data_differences(self, data: dict[str, Any]) -> list[Difference]:
    """How the rows differ from those that the run was trained on."""
    file = self.path / DATA_FILE
    old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else data
    return [
      Difference(name, str(old.get(name)), str(data.get(name)))
      for name in sorted(old.keys() | data.keys())
      if old.get(name) != data.get(name)
    ]

  def write_config(self, config: Config, command: str, *, made_here: bool = True) -> None:
    """Writes the configuration and the values in force.

    Args:
      config: the configuration.
      command: what asked for it.
      made_here: whether it is the user's own, and trusted from now on.
    """
    self.path.mkdir(parents=True, exist_ok=True)
    first = command.replace("\n", "\\n")  # one line, whatever a value holds
    _write(self.config_file, f"# {first}\n{config.text()}")
    _write(self.path / OPERATIVE_FILE, config.operative_text())
    if made_here:
      trust_check.record(self.config_file)

  def write_data(self, data: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Writes what identifies the rows, and the vocabulary itself."""
    _write(self.path / DATA_FILE, json.dumps(data, indent=2) + "\n")
    vocabularies.save(vocabulary, self.path)

  def vocabulary(self) -> Vocabulary:
    """The vocabulary that the run was trained with."""
    try:
      return vocabularies.load(self.path)
    except VocabularyError as error:
      raise UserError(str(error)) from None


def _values(source: gin_source.Source) -> dict[str, Any]:
  """The bindings of a file, by their left side."""
  return {
    f"{item.scope}/{item.selector}.{item.parameter}".lstrip("/"): item.value
    for item in source.statements
  }


def _text(values: dict[str, Any], name: str) -> str | None:
  return repr(values[name]) if name in values else None


def _moved(old: Any, new: Any) -> bool:
  """Whether a path, or each of several, may be that of a run which was made in another folder."""
  if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
    return all(map(_moved, old, new))
  if not isinstance(old, str) or not isinstance(new, str):
    return False
  if not os.path.isabs(old):
    return Path(new).parts[-len(Path(old).parts) :] == Path(old).parts
  return old == new or not glob.glob(old, recursive=True)


def _write(file: Path, text: str) -> None:
  """Writes a file at once: a reader sees the old or the new one, also after a crash."""
  new = file.with_name(file.name + ".new")
  new.write_text(text, encoding="utf-8")
  new.replace(file)
