"""What a run directory holds besides metrics and checkpoints: its configuration and vocabulary."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from base import paths, small_files
from base.errors import UserError
from base.wording import one_line
from config import config as config_lib
from config import source as gin_source
from config.config import Config, ConfigError
from data import tokenizers
from data.tokenizers import Vocabulary, VocabularyError
from experiment import file_kinds, run_record, trust_check
from experiment.trust import NOBODY, Trust
from parallel import processes
from training.loop import LOSS_PICTURE, METRICS_FILE

CONFIG_FILE = "config.gin"
OPERATIVE_FILE = "operative_config.gin"
DATA_FILE = "data.json"
_WRITTEN = (
  CONFIG_FILE, OPERATIVE_FILE, DATA_FILE, run_record.RECORD_FILE, METRICS_FILE, LOSS_PICTURE,
  tokenizers.DESCRIPTION_FILE, tokenizers.MODEL_FILE,
)  # fmt: skip


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
    """Raises UserError if no run was started here; it names those in the folder, or beside it."""
    if not self.holds_run():
      near = _runs_in(self.path) or _runs_in(self.path.parent)
      hint = f" There is {', '.join(near[:8])}." if near else ""
      raise UserError(f"{self} holds no run: it has no {CONFIG_FILE}.{hint}")

  def require_made_from(self, kind: str, text: str | None = None) -> None:
    """Raises UserError if the configuration here is not of this kind, `gin_kinds.RUN` or
    `COMPARISON`.

    Args:
      kind: of the two.
      text: what is loaded in place of what the file holds; None is the latter.
    """
    if kind == file_kinds.RUN and not self.was_made_from(kind, text):
      near = _runs_in(self.path / "runs")
      hint = f" Name one of its runs: {', '.join(near[:4])}." if near else ""
      raise UserError(f"{self} holds a comparison, and no single run.{hint}")
    if kind == file_kinds.COMPARISON and not self.was_made_from(kind, text):
      raise UserError(
        f"{self} holds a training run, and no comparison. Name another --output, or go on with "
        "the run: "
        f"python -m launch.train --run_dir={self}"
      )

  def require_place(self) -> None:
    """Raises UserError if the run cannot be kept under its path, whatever is done."""
    if self.path in (Path(self.path.anchor), gin_source.GIN_ROOT.parent):
      raise UserError(f"{self} is no folder for a run. Name one of its own: --run_dir=runs/first.")
    if self.path.is_dir():
      wrong = next((name for name in _WRITTEN if (self.path / name).is_dir()), None)
      if wrong:
        raise UserError(f"{self}/{wrong} is a folder. Remove it, or name another --run_dir.")
      metrics = self.path / METRICS_FILE
      # It alone is written in place: what it leads to would be cut short.
      if metrics.is_symlink() or (metrics.exists() and not metrics.is_file()):
        raise UserError(
          f"{self}/{METRICS_FILE} is a link, a pipe or a device, and no file of the run. Remove "
          "it, or name another --run_dir."
        )
    elif self.path.is_symlink():
      raise UserError(f"{self} is a link that leads nowhere. Remove it, or name another --run_dir.")
    elif self.path.exists():
      raise UserError(f"{self} is a file. Name a folder: --run_dir=...")

  def was_made_from(self, kind: str, text: str | None = None) -> bool:
    """Whether the kept configuration is of this kind: see `experiment.file_kinds`."""
    try:
      kept = gin_source.read_alone(
        gin_source.text_of(self.config_file) if text is None else text, str(self.config_file)
      )
    except ConfigError:
      return True  # Whoever reads it says what is wrong.
    # Of neither is what the loader names better.
    return kind in (file_kinds.kinds(kept) or {kind})

  def differences(self, config: Config, trust: Trust = NOBODY) -> list[Difference]:
    """How a configuration differs from that of the run, in values in force.

    A parameter that the run did not have, at its default, is no difference. Neither is one on which
    no result depends, nor a path under which nothing is found any more: the rows themselves are
    compared.

    Args:
      config: the configuration.
      trust: modules beyond this project's that the run's configuration may name.

    Raises:
      UserError: its values in force are lost, and it names others.
    """
    old = self._values_in_force(config, trust)
    new = _values(gin_source.read_text(config.operative_text()))
    defaults, paths_in_force = config.default_names(), config.path_names()
    immaterial = config.immaterial_names()
    return [
      Difference(name, _text(old, name), _text(new, name))
      for name in sorted(old.keys() | new.keys())
      if _text(old, name) != _text(new, name)
      and name not in immaterial
      and not (name not in old and name in defaults)
      and not (name in paths_in_force and _moved(old.get(name), new.get(name)))
    ]

  def _values_in_force(self, config: Config, trust: Trust) -> dict[str, Any]:
    """The run's values in force; from its configuration if their own file is gone."""
    file = self.path / OPERATIVE_FILE
    try:
      return _values_of(file)
    except ConfigError:
      text = gin_source.text_of(self.config_file)
      trust_check.check(self.config_file, trust, text=text, makes_rows=True)
      kept = gin_source.read_text(text, str(self.config_file))
      own = config_lib.resolve(kept, config.root.target, str(self.config_file))
      return _values(gin_source.read_text(own.operative_text()))

  def holds_text_of(self, config: Config) -> bool:
    """Whether the kept configuration binds what this one does, word for word; comments aside."""
    try:
      kept = _values_of(self.config_file)
    except ConfigError:
      return False
    return kept == _values(gin_source.read_text(config.text()))

  def judge(self) -> list[run_record.Fault]:
    """What is not as the run was trained, and what it should be; changes nothing. See
    `experiment.run_record`.
    """
    return run_record.judge(self.path, CONFIG_FILE, OPERATIVE_FILE, DATA_FILE)

  def config_text(self, faults: Sequence[run_record.Fault] = ()) -> str:
    """The configuration as the run was trained under it, whatever its file says.

    Args:
      faults: what `judge` found.

    Raises:
      UserError: no run was started here.
      ConfigError: it cannot be read.
    """
    for fault in faults:
      if fault.file == self.config_file and fault.text is not None:
        return fault.text
    self.require_run()
    return gin_source.text_of(self.config_file)

  def restore(self) -> None:
    """Puts back what is not as the run was trained, in a directory that is held. All processes come
    here.

    Raises:
      UserError: it cannot be put back.
    """
    refusal = ""
    if processes.is_first():
      try:
        run_record.repair(self.judge())
      except UserError as error:
        refusal = str(error)
    if refusal := processes.told_by_first(refusal):
      raise UserError(refusal)

  def data_differences(self, data: dict[str, Any]) -> list[Difference]:
    """How the rows differ from those that the run was trained on."""
    file = self.path / DATA_FILE
    try:
      kept = small_files.read(file)
      old = data if kept is None else dict(json.loads(kept))
    except (ValueError, TypeError, RecursionError):
      raise UserError(
        f"{paths.shown(file)} cannot be read, and no checkpoint says what it held. Give "
        "--resume=force if the "
        "rows are those that the run was started with."
      ) from None
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
    run_record.write(self.path, config.text(), config.operative_text())
    first = one_line(command)
    text = f"# {first}\n{config.text()}"
    small_files.replace(self.config_file, text)
    small_files.replace(self.path / OPERATIVE_FILE, config.operative_text())
    if made_here:
      trust_check.record(self.config_file, text)

  def write_data(self, data: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Writes what identifies the rows, and the vocabulary itself."""
    small_files.replace(self.path / DATA_FILE, json.dumps(data, indent=2) + "\n")
    tokenizers.save(vocabulary, self.path)

  def vocabulary(self) -> Vocabulary:
    """The vocabulary that the run was trained with."""
    try:
      return tokenizers.load(self.path)
    except (FileNotFoundError, VocabularyError) as error:
      raise UserError(str(error)) from None
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
      # RuntimeError: SentencePiece; RecursionError is one too.
      text = " ".join(str(error).split())[:250] or type(error).__name__
      raise UserError(
        f"the vocabulary of {self} cannot be read ({text}). Restore {tokenizers.DESCRIPTION_FILE} "
        "and, if there "
        f"was one, {tokenizers.MODEL_FILE}; the run's training command writes them anew."
      ) from None


def _runs_in(folder: Path) -> list[str]:
  """The folders of runs, or of comparisons, in a folder, as a reader would type them."""
  return sorted(paths.shown(file.parent) for file in folder.glob(f"*/{CONFIG_FILE}"))


def _values_of(file: Path) -> dict[str, Any]:
  """The bindings of a file that includes nothing.

  Raises:
    ConfigError: it cannot be read.
  """
  return _values(gin_source.read_alone(gin_source.text_of(file), str(file)))


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
