"""The configuration of a run directory, alone or with gin files and arguments laid over it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from base.errors import UserError
from config import source
from config.config import Config
from config.place import ConfigError
from config.source import Macro
from data import tokenizers
from experiment import experiment as experiment_lib
from experiment import file_kinds, run_record, trust_check
from experiment.run_directory import RunDirectory
from experiment.trust import NOBODY, Trust
from parallel import processes


def load(
  run: RunDirectory,
  files: Sequence[str | os.PathLike] = (),
  arguments: Iterable[str] = (),
  *,
  trust: Trust = NOBODY,
  makes_rows: bool = False,
) -> Config:
  """Reads the configuration of a run, changed by gin files and then by arguments.

  Args:
    run: the run's directory.
    files: the user's own, laid over it.
    arguments: bindings, laid over these.
    trust: modules beyond this project's that the run's configuration may name.
    makes_rows: whether text may be tokenized; see `experiment.trust_check.check`.

  It is the configuration that the run was trained under, whatever its file says; nothing is
  changed. A SentencePiece model that is gone from where the run read it is replaced by the run's
  own copy. All processes come here.

  Raises:
    UserError: the directory holds no run, or one whose configuration is not trusted.
    ConfigError: see `config.config.load`.
  """
  text = _agreed_text(run)
  trust_check.check(run.config_file, trust, text=text, makes_rows=makes_rows)
  run.require_made_from(file_kinds.RUN, text)
  arguments = list(arguments)
  kept = source.read_text(text, str(run.config_file))
  found = experiment_lib.load([kept, *files], arguments, name=str(run.config_file))
  copy = run.path / tokenizers.MODEL_FILE
  if copy.is_file() and (replaced := _missing_model(found)):
    arguments.append(f"--gin.{replaced}={str(copy)!r}")
    found = experiment_lib.load([kept, *files], arguments, name=str(run.config_file))
  return found


def is_own(run: RunDirectory) -> bool:
  """Whether the user made the run on this machine, so that what is made from its configuration is
  theirs.
  """
  return trust_check.is_recorded(run.config_file, run.config_text(run.judge()))


def _agreed_text(run: RunDirectory) -> str:
  """The run's configuration as the first process sees it, on every process; it tells what is not as
  it was.

  Raises:
    UserError: on every process, if there is no run, or it cannot be read.
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


def _missing_model(config: Config) -> str | None:
  """The macro or parameter that names a SentencePiece model which does not exist."""
  for key, item in config.operative.items():
    of_model = key.configurable.target is tokenizers.SentencePiece and key.parameter == "path"
    if of_model and isinstance(item.value, str) and not Path(item.value).is_file():
      bound = config.parameters[key].value
      return bound.name if isinstance(bound, Macro) else key.full_name
  return None


def is_whole(files: Sequence[str | os.PathLike]) -> bool:
  """Whether gin files describe a whole experiment; if not, they change that of a run.

  Whoever binds the training data of the experiment describes all of it, as gin/experiment.gin does.
  """
  return any(
    statement.selector.rpartition(".")[2] == experiment_lib.Experiment.__name__
    and statement.parameter == "train_data"
    for file in files
    for statement in source.read_file(file).statements
  )
