"""Lists the runs in a folder, also while they train, from whatever files can be read."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from base import buckets
from base.errors import UserError
from experiment import directory_owner, run_directory
from training import checkpoint
from training.metrics import METRICS_FILE, read_metrics

TRAINING = "training"
FINISHED = "finished"
STOPPED = "stopped"
KILLED = "killed"
# Folders within a run directory or a checkout, which contain no runs.
_PASSED = {checkpoint.FOLDER, checkpoint.DAMAGED_FOLDER, "cache", "evaluations", "wandb", "profile"}
_DEEPEST = 6
# A comparison has a configuration too, and no data.
_OF_A_RUN = {run_directory.CONFIG_FILE, run_directory.DATA_FILE}
_STEPS = "loop.LoopOptions.steps"
# What tells runs apart at a glance comes first.
_MODEL = "experiment.Experiment.model"
# Where rows are kept changes no run.
_IMMATERIAL = ".cache_dir"


@dataclasses.dataclass(frozen=True)
class Run:
  """What the files of a run directory say.

  Attributes:
    path: the run directory.
    name: its path below the listed folder.
    state: TRAINING, FINISHED, STOPPED (it ended, and the same command continues it) or KILLED (it
      left its lock behind).
    step: steps done.
    steps: steps of its configuration; None if unknown.
    records: its metrics, without what is no number.
    values: its configuration, by name.
  """

  path: Path
  name: str
  state: str
  step: int
  steps: int | None
  records: tuple[dict[str, float], ...]
  values: dict[str, Any]

  def last(self, name: str) -> float | None:
    """Returns the last number of this name in its metrics; None without one."""
    return next((record[name] for record in reversed(self.records) if name in record), None)

  def curve(self, name: str) -> tuple[tuple[float, float], ...]:
    """Returns (step, number) of each line of metrics that has it."""
    return tuple((record["step"], record[name]) for record in self.records if name in record)


def runs_in(folder: Path) -> list[Run]:
  """Lists the runs in a folder and its subfolders, or the one that the folder is, by name."""
  return sorted(
    (_run(path, folder) for path in _directories(folder)), key=lambda run: _natural(run.name)
  )


def _directories(folder: Path) -> Iterator[Path]:
  """Finds folders with metrics or with a run's configuration; links are not followed."""
  for path, folders, files in buckets.walk(folder):
    depth = len(path.relative_to(folder).parts)
    folders[:] = (
      [name for name in folders if name not in _PASSED and not name.startswith(".")]
      if depth < _DEEPEST
      else []
    )
    if METRICS_FILE in files or {*files} >= _OF_A_RUN:
      yield path


def _run(path: Path, folder: Path) -> Run:
  records = _records(path)
  values = _values(path)
  found = values.get(_STEPS)
  steps = found if type(found) is int else None
  step = max([int(record["step"]) for record in records] + _saved(path), default=0)
  name = path.relative_to(folder).as_posix()
  return Run(
    path=path,
    name=path.absolute().name if name == "." else name,
    state=_state(path, step, steps),
    step=step,
    steps=steps,
    records=records,
    values=values,
  )


def _state(path: Path, step: int, steps: int | None) -> str:
  try:
    held = directory_owner.holder(path) is not None
    if held and not directory_owner.is_abandoned(path):
      return TRAINING
  except OSError:
    held = False
  if steps is not None and step >= steps:
    return FINISHED
  return KILLED if held else STOPPED


def _saved(path: Path) -> list[int]:
  try:
    return checkpoint.available_steps(path)
  except (OSError, ValueError):
    return []


def _records(path: Path) -> tuple[dict[str, float], ...]:
  try:
    found = read_metrics(path / METRICS_FILE)
  except (OSError, ValueError):
    return ()
  return tuple(
    {name: value for name, value in record.items() if _is_number(value)}
    for record in found
    if _is_number(record["step"])
  )


def _is_number(value: Any) -> bool:
  # A number of JSON may be too large for a float.
  return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def _values(path: Path) -> dict[str, Any]:
  """Reads the values in force; only as text: no code that they name is imported."""
  for file in (run_directory.OPERATIVE_FILE, run_directory.CONFIG_FILE):
    try:
      return run_directory.stored_values(path / file)
    except (UserError, OSError, ValueError, RecursionError):
      continue
  return {}


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
  """Returns the values that differ between runs: of each run, in order, by a short name.

  Values that only one run has, or none but it lacks, are left out: they follow from another one, as
  the window from the model; so are places where rows are kept. The model is first. The text is ''
  where a run does not have the value.
  """
  having = Counter(name for run in runs for name in run.values)
  shown: dict[str, list[str]] = {}
  for name in sorted(having, key=lambda name: (name != _MODEL, name)):
    if name.endswith(_IMMATERIAL):
      continue
    texts = [_text(run.values[name]) if name in run.values else "" for run in runs]
    if having[name] > 1 and len({text for text in texts if text}) > 1:
      shown[name] = texts
  short = {name: ".".join(name.split(".")[-2:]) for name in shown}
  count = Counter(short.values())
  return {short[name] if count[short[name]] == 1 else name: texts for name, texts in shown.items()}


def _text(value: Any) -> str:
  return str(value) if isinstance(value, str) else repr(value)


def _natural(name: str) -> list[tuple[int, int | str]]:
  """Orders run_2 before run_10."""
  words: list[str] = []
  for letter in name:
    if words and words[-1][-1].isdecimal() == letter.isdecimal():
      words[-1] += letter
    else:
      words.append(letter)
  return [(0, int(word)) if word.isdecimal() else (1, word) for word in words]
