"""Reads, checks and writes a run directory's configuration and tokenizer."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from base import buckets, commands, paths, small_files
from base.errors import UserError
from base.wording import one_line
from config import config as config_lib
from config import source as gin_source
from config.config import Config, ConfigError
from data import tiktoken_files, tokenizer_json, tokenizers
from data.tokenizers import Tokenizer, TokenizerError
from experiment import file_kinds, foreign_files, run_record, trust_check
from experiment.trust import NOBODY, Trust
from parallel import processes
from training import checkpoint
from training.loop import LOSS_PICTURE
from training.metrics import METRICS_FILE

CONFIG_FILE = "config.gin"
OPERATIVE_FILE = "operative_config.gin"
DATA_FILE = "data.json"
_WRITTEN = (
  CONFIG_FILE, OPERATIVE_FILE, DATA_FILE, run_record.RECORD_FILE, METRICS_FILE, LOSS_PICTURE,
  tokenizers.DESCRIPTION_FILE, tokenizers.MODEL_FILE, tokenizer_json.FILE,
  tokenizer_json.CONFIG_FILE, tiktoken_files.FILE,
)  # fmt: skip
# Of `base.bucket_paths`: the root, the scheme and the bucket.
_PARTS_OF_A_BUCKET = 3


@dataclasses.dataclass(frozen=True)
class Difference:
  """A changed value; `old` or `new` is None if the value is new or removed."""

  name: str
  old: str | None
  new: str | None

  def __str__(self) -> str:
    if self.old is None:
      return f"  {self.name} = {self.new} is new"
    if self.new is None:
      return f"  {self.name} = {self.old} is removed"
    return f"  {self.name}: {self.old} -> {self.new}"


@dataclasses.dataclass(frozen=True)
class RunDirectory:
  """The folder of a run."""

  path: Path

  def __str__(self) -> str:
    """Formats the path as a user would type it."""
    return paths.shown(self.path)

  @property
  def config_file(self) -> Path:
    """Path of the configuration's gin file."""
    return self.path / CONFIG_FILE

  def holds_run(self) -> bool:
    """Whether a run was started here."""
    return self.config_file.is_file()

  def require_run(self) -> None:
    """Raises UserError if no run was started here; the message lists runs in or next to it."""
    if not self.holds_run():
      near = _runs_in(self.path) or _runs_in(self.path.parent)
      first = f"{commands.line('train')} gin/runs/griffin_quickstart.gin --run_dir=runs/first"
      hint = f"Runs nearby: {', '.join(near[:8])}." if near else f"Train one first: {first}"
      lacks = f"it has no {CONFIG_FILE}" if self.path.exists() else "there is no such folder"
      raise UserError(f"{self} is not a run directory: {lacks}. {hint}")

  def require_made_from(self, kind: str, text: str | None = None) -> None:
    """Raises UserError if the configuration is of the other kind.

    Args:
      kind: `file_kinds.RUN` or `COMPARISON`.
      text: the text that is loaded; None reads the file.
    """
    if kind == file_kinds.RUN and not self.was_made_from(kind, text):
      near = _runs_in(self.path / "runs")
      hint = f" Name one of its runs: {', '.join(near[:4])}." if near else ""
      raise UserError(f"{self} contains a comparison, not a run.{hint}")
    if kind == file_kinds.COMPARISON and not self.was_made_from(kind, text):
      raise UserError(
        f"{self} contains a run, not a comparison. Name another --output, or continue the run: "
        f"{commands.line('train')} --run_dir={shlex.quote(str(self))}"
      )

  def require_place(self) -> None:
    """Raises UserError if the path cannot be a run directory."""
    if buckets.in_bucket(self.path):
      if self.path.is_file():
        raise UserError(f"{self} is a file. Name a folder: --run_dir=...")
      self.require_outside_of_runs("--run_dir")
      return
    self.require_outside_of_runs("--run_dir")
    if self.path in (Path(self.path.anchor), gin_source.GIN_ROOT.parent):
      raise UserError(f"{self} cannot be a run directory. Name a new one: --run_dir=runs/first.")
    if self.path.is_dir():
      wrong = next((name for name in _WRITTEN if (self.path / name).is_dir()), None)
      if wrong:
        raise UserError(f"{self}/{wrong} is a folder. Remove it, or name another --run_dir.")
      self.require_no_foreign_files("--run_dir")
      metrics = self.path / METRICS_FILE
      # Only this file is written in place: a link's target would be truncated.
      if metrics.is_symlink() or (metrics.exists() and not metrics.is_file()):
        raise UserError(
          f"{self}/{METRICS_FILE} is a link, a pipe or a device, not a file. Remove it, or name "
          "another --run_dir."
        )
    elif self.path.is_symlink():
      raise UserError(f"{self} is a broken link. Remove it, or name another --run_dir.")
    elif self.path.exists():
      raise UserError(f"{self} is a file. Name a folder: --run_dir=...")

  def require_outside_of_runs(self, option: str, *, continues: bool = True) -> None:
    """Raises UserError for a new folder or file in the directory of a run, among its files.

    The runs in the folder of a comparison are its own.

    Args:
      option: the option or argument that named the folder.
      continues: whether the folder itself may be a run that was started earlier, to continue it.
    """
    if continues and self.holds_run():
      return
    for parent in self._folders_above() if continues else (self.path, *self._folders_above()):
      above = RunDirectory(parent)
      with contextlib.suppress(OSError):
        is_run = (parent / OPERATIVE_FILE).is_file() and above.holds_run()
        if is_run and above.was_made_from(file_kinds.RUN):
          raise UserError(
            f"{self} lies in the run directory {above}, among its files. Name a place outside of "
            f"it for {option}."
          )

  def _folders_above(self) -> list[Path]:
    """Lists the folders above, by the path's names and by where its links lead."""
    if buckets.in_bucket(self.path):
      return [parent for parent in self.path.parents if len(parent.parts) >= _PARTS_OF_A_BUCKET]
    # A circle of links has no end, and `Path.resolve` raises for it.
    target = Path(os.path.realpath(self.path))
    return list(dict.fromkeys((*self.path.parents, *target.parents)))

  def require_no_foreign_files(self, option: str, own: Sequence[str] = ()) -> None:
    """Raises UserError if the folder holds files, and no run or comparison was started in it.

    Args:
      option: the option that named the folder.
      own: further names that the command writes.
    """
    # A run whose configuration was removed is restored from these.
    left = (CONFIG_FILE, run_record.RECORD_FILE, checkpoint.FOLDER)
    if not any((self.path / name).exists() for name in left):
      foreign_files.require_none(self.path, option, (*_WRITTEN, *own))

  def was_made_from(self, kind: str, text: str | None = None) -> bool:
    """Whether the stored configuration is of this kind: see `experiment.file_kinds`."""
    try:
      kept = gin_source.read_alone(
        gin_source.text_of(self.config_file) if text is None else text, str(self.config_file)
      )
    except ConfigError:
      return True  # Loading it raises the error.
    # If it is neither, the loader has the better message.
    return kind in (file_kinds.kinds(kept) or {kind})

  def differences(self, config: Config, trust: Trust = NOBODY) -> list[Difference]:
    """Lists how a configuration's values in force differ from the run's.

    Not counted are parameters that the run did not have, at their defaults; values that cannot
    change a result; and paths that no longer exist, because the rows themselves are compared.

    Args:
      config: the configuration.
      trust: other modules than this project's that the run's configuration may name.

    Raises:
      UserError: the file of its values in force is lost, and its configuration is not trusted.
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
    """Reads the run's values in force; resolves its configuration if their file is missing."""
    file = self.path / OPERATIVE_FILE
    try:
      return stored_values(file)
    except ConfigError:
      text = gin_source.text_of(self.config_file)
      trust_check.check(self.config_file, trust, text=text, makes_rows=True)
      kept = gin_source.read_text(text, str(self.config_file))
      own = config_lib.resolve(kept, config.root.target, str(self.config_file))
      return _values(gin_source.read_text(own.operative_text()))

  def holds_text_of(self, config: Config) -> bool:
    """Whether the stored configuration has the same text as this one, apart from comments."""
    try:
      kept = stored_values(self.config_file)
    except ConfigError:
      return False
    return kept == _values(gin_source.read_text(config.text()))

  def judge(self) -> list[run_record.Fault]:
    """Lists files that changed since training; changes nothing. See `experiment.run_record`."""
    return run_record.judge(self.path, CONFIG_FILE, OPERATIVE_FILE, DATA_FILE)

  def config_text(self, faults: Sequence[run_record.Fault] = ()) -> str:
    """Returns the configuration that the run was trained with, even if its file changed.

    Args:
      faults: the result of `judge`.

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
    """Restores files that changed since training, in a locked directory. All processes call this.

    Raises:
      UserError: a file cannot be restored.
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
    """Lists how the rows differ from those that the run was trained on."""
    file = self.path / DATA_FILE
    try:
      kept = small_files.read(file)
      old = data if kept is None else dict(json.loads(kept))
    except (ValueError, TypeError, RecursionError):
      raise UserError(
        f"{paths.shown(file)} cannot be read, and no checkpoint has a copy. Give --resume=force if "
        "the rows are those that the run was started with."
      ) from None
    return [
      Difference(name, str(old.get(name)), str(data.get(name)))
      for name in sorted(old.keys() | data.keys())
      if old.get(name) != data.get(name)
    ]

  def write_config(
    self, config: Config, command: str, *, made_here: bool = True, note: str | None = None
  ) -> None:
    """Writes the configuration and the values in force.

    Args:
      config: the configuration.
      command: the command line, for the file's first line.
      made_here: whether the user made it, so that it is trusted from now on.
      note: a further line on what was chosen.
    """
    self.path.mkdir(parents=True, exist_ok=True)
    run_record.write(self.path, config.text(), config.operative_text())
    first = one_line(command)
    noted = "" if note is None else f"# {one_line(note)}\n"
    text = f"# {first}\n{noted}{config.text()}"
    small_files.replace(self.config_file, text)
    small_files.replace(self.path / OPERATIVE_FILE, config.operative_text())
    if made_here:
      trust_check.record(self.config_file, text)

  def write_data(self, data: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Writes the rows' fingerprints and the tokenizer."""
    small_files.replace(self.path / DATA_FILE, json.dumps(data, indent=2) + "\n")
    tokenizers.save(tokenizer, self.path)

  def tokenizer(self) -> Tokenizer:
    """The tokenizer that the run was trained with."""
    try:
      return tokenizers.load(self.path)
    except (FileNotFoundError, TokenizerError) as error:
      raise UserError(str(error)) from None
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
      # RuntimeError: SentencePiece; RecursionError is one too.
      text = " ".join(str(error).split())[:250] or type(error).__name__
      raise UserError(
        f"the tokenizer of {self} cannot be read ({text}). Restore {tokenizers.DESCRIPTION_FILE} "
        f"and {tokenizers.MODEL_FILE} (if there was one), or run its training command, which "
        "writes them again."
      ) from None


def values_in_force(config: Config) -> dict[str, Any]:
  """Returns a configuration's numbers, texts and lists by name, defaults included."""
  plain = int | float | str | bool | list | tuple
  values = _values(gin_source.read_text(config.operative_text()))
  return {name: value for name, value in values.items() if isinstance(value, plain)}


def _runs_in(folder: Path) -> list[str]:
  """Lists the runs or comparisons in a folder, as a user would type them."""
  return sorted(paths.shown(file.parent) for file in folder.glob(f"*/{CONFIG_FILE}"))


def stored_values(file: Path) -> dict[str, Any]:
  """Reads the bindings of a file without includes.

  Raises:
    ConfigError: it cannot be read.
  """
  return _values(gin_source.read_alone(gin_source.text_of(file), str(file)))


def _values(source: gin_source.Source) -> dict[str, Any]:
  """Returns the bindings of a source by their left side."""
  return {
    f"{item.scope}/{item.selector}.{item.parameter}".lstrip("/"): item.value
    for item in source.statements
  }


def _text(values: dict[str, Any], name: str) -> str | None:
  return repr(values[name]) if name in values else None


def _moved(old: Any, new: Any) -> bool:
  """Whether a path, or each of several, may differ only because the run was moved."""
  if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
    return all(map(_moved, old, new))
  if not isinstance(old, str) or not isinstance(new, str):
    return False
  if not os.path.isabs(old):
    return Path(new).parts[-len(Path(old).parts) :] == Path(old).parts
  return old == new or not glob.glob(old, recursive=True)
