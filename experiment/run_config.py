"""Loads the configuration of a run directory, changed by gin files and arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence

from base import paths
from base.errors import UserError
from base.remote_files import RemoteError
from config import source
from config.config import Config
from config.place import ConfigError
from config.source import Macro
from data import tiktoken_files, tokenizer_json, tokenizers
from experiment import experiment as experiment_lib
from experiment import file_kinds, run_record, trust_check
from experiment.run_directory import RunDirectory
from experiment.trust import NOBODY, Trust
from parallel import processes

# The files of tokenizers in a run directory.
_COPIES = {
  tokenizers.SentencePiece: tokenizers.MODEL_FILE,
  tokenizer_json.TokenizerJson: tokenizer_json.FILE,
  tiktoken_files.Tiktoken: tiktoken_files.FILE,
}


def load(
  run: RunDirectory,
  files: Sequence[str | os.PathLike] = (),
  arguments: Iterable[str] = (),
  *,
  trust: Trust = NOBODY,
  makes_rows: bool = False,
  trains: bool = False,
) -> Config:
  """Loads the configuration of a run, changed by gin files and then by arguments.

  This is the configuration that the run was trained with, even if its file was edited; no file is
  changed. If the tokenizer's file is missing, the run's copy is used. All processes must
  call this.

  Args:
    run: the run's directory.
    files: gin files of the user, which change the configuration.
    arguments: bindings, which change it after the files.
    trust: other modules than this project's that the run's configuration may name.
    makes_rows, trains: whether text may be tokenized, and whether the run is trained; see
      `experiment.trust_check.check`.

  Raises:
    UserError: the directory contains no run, or its configuration is not trusted.
    ConfigError: see `config.config.load`.
  """
  text = _agreed_text(run)
  trust_check.check(run.config_file, trust, text=text, makes_rows=makes_rows, trains=trains)
  run.require_made_from(file_kinds.RUN, text)
  arguments = list(arguments)
  kept = source.read_text(text, str(run.config_file))
  found = experiment_lib.load([kept, *files], arguments, name=str(run.config_file))
  for kind, name in _COPIES.items():
    copy = run.path / name
    if copy.is_file() and (replaced := _missing_model(found, kind)):
      arguments.append(f"--gin.{replaced}={str(copy)!r}")
      found = experiment_lib.load([kept, *files], arguments, name=str(run.config_file))
  return found


def is_own(run: RunDirectory) -> bool:
  """Whether the user made the run on this machine, so that runs based on it are trusted too."""
  return trust_check.is_recorded(run.config_file, run.config_text(run.judge()))


def _agreed_text(run: RunDirectory) -> str:
  """Reads the run's configuration in the first process, for all; warns of changed files.

  Raises:
    UserError: on every process, if the run is missing or cannot be read.
  """
  text = refusal = ""
  if processes.is_first():
    try:
      faults = run.judge()
      text = run.config_text(faults)
      for fault in faults:
        if fault.file == run.config_file:
          run_record.tell_of_reading(fault)
    except (UserError, ConfigError) as error:
      refusal = str(error)
  text, refusal = json.loads(processes.told_by_first(json.dumps([text, refusal])))
  if refusal:
    raise UserError(refusal)
  return text


def _exists(path: str) -> bool:
  try:
    return paths.readable(path).exists()
  except RemoteError:  # no answer
    return False


def _missing_model(config: Config, kind: type) -> str | None:
  """Returns the macro or parameter that names a missing file of a tokenizer of this kind."""
  for key, item in config.operative.items():
    of_model = key.configurable.target is kind and key.parameter == "path"
    if of_model and isinstance(item.value, str) and not _exists(item.value):
      bound = config.parameters[key].value
      return bound.name if isinstance(bound, Macro) else key.full_name
  return None


def is_whole(files: Sequence[str | os.PathLike]) -> bool:
  """Whether gin files describe a complete experiment; if not, they change a run's.

  Files that bind the experiment's training data are complete, as gin/experiment.gin is.
  """
  return any(file_kinds.binds_data(source.read_file(file)) for file in files)
