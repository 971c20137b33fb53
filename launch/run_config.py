"""The configuration of a run directory, alone or with gin files and arguments laid over it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from data import vocabularies
from launch import experiment as experiment_lib
from launch import gin_kinds, gin_source, trust_check
from launch.config import Config
from launch.gin_source import Macro
from launch.run_directory import RunDirectory
from launch.trust import NOBODY, Trust


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
    makes_rows: whether text may be tokenized; see `launch.trust_check.check`.

  A SentencePiece model that is gone from where the run read it is replaced by the run's own copy.

  Raises:
    UserError: the directory holds no run, or one whose configuration is not trusted.
    ConfigError: see `launch.config.load`.
  """
  run.restore()
  run.require_run()
  trust_check.check(run.config_file, trust, makes_rows=makes_rows)
  run.require_made_from(gin_kinds.RUN)
  arguments = list(arguments)
  found = experiment_lib.load([run.config_file, *files], arguments)
  copy = run.path / vocabularies.MODEL_FILE
  if copy.is_file() and (replaced := _missing_model(found)):
    found = experiment_lib.load(
      [run.config_file, *files], [*arguments, f"--gin.{replaced}={str(copy)!r}"]
    )
  return found


def _missing_model(config: Config) -> str | None:
  """The macro or parameter that names a SentencePiece model which does not exist."""
  for key, item in config.operative.items():
    of_model = key.configurable.target is vocabularies.SentencePiece and key.parameter == "path"
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
    for statement in gin_source.read_file(file).statements
  )
