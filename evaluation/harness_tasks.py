"""Finds tasks of lm-eval, gives them local copies of their data, and scores them.

Needs the extra `harness`, and imports it only when a task is asked for.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from base.errors import UserError

if TYPE_CHECKING:
  from evaluation.harness import HarnessModel

# Folders of lm-eval's YAML files of the paper's tasks (section 3.2). All files together are
# thousands, which take half a minute to read.
_FOLDERS = {
  "mmlu": "mmlu/default",
  "hellaswag": "hellaswag",
  "piqa": "piqa",
  "winogrande": "winogrande",
  "arc_easy": "arc",
  "arc_challenge": "arc",
}
# For standard errors. lm-eval's default of 100,000 takes minutes in one process.
_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class TaskScore:
  """What a model scored on a task.

  Attributes:
    accuracy: share of right answers, normalized by the characters of the answers where the task
      has that metric.
    questions: number of questions.
  """

  accuracy: float
  questions: int


def manager_of(names: Sequence[str], include_path: Path | None = None) -> Any:
  """Returns a manager that knows the tasks, and reads few of lm-eval's files if it can.

  Args:
    names: tasks and groups. Those that exist nowhere are not found afterwards either.
    include_path: a folder with more YAML files, which override lm-eval's.
  """
  import lm_eval
  from lm_eval.tasks import TaskManager

  own: list[str | Path] = [] if include_path is None else [include_path]
  folder = Path(cast(str, lm_eval.__file__)).parent / "tasks"
  folders = dict.fromkeys(folder / _FOLDERS[name] for name in names if name in _FOLDERS)
  manager = TaskManager(include_path=[*folders, *own], include_defaults=False)
  if set(names) <= set(manager.all_tasks):
    return manager
  return TaskManager(include_path=own)


def load(manager: Any, name: str, data: Path | None = None) -> list[Any]:
  """Loads a task, or all of a group or tag, with their data.

  Args:
    manager: see `manager_of`.
    name: a task, group or tag that the manager knows.
    data: a local copy of the data set of all of them; None takes the data set by its name.

  Returns:
    The group, or the tasks, for `lm_eval.evaluator.simple_evaluate`.

  Raises:
    Exception: the data cannot be read; code of a data set may raise anything.
  """
  import datasets

  datasets.disable_progress_bars()
  entry = manager.task_index[name]
  if data is None:
    loaded = manager.load([name])
  else:
    # A tag has no file: its tasks have.
    members = sorted(entry.tags) if entry.yaml_path is None else [name]
    loaded = _load_with(manager, members, data)
  group = loaded["groups"].get(name)
  return [group] if group else list(loaded["tasks"].values())


def data_sets(manager: Any, name: str) -> list[str]:
  """Returns the names of the data sets of a task, group or tag, once each."""
  entry = manager.task_index.get(name)
  if entry is None:
    return []
  config = entry.cfg or {}
  if "dataset_path" in config:
    return [config["dataset_path"]]
  members = config.get("task") or sorted(entry.tags)
  names = [member if isinstance(member, str) else member.get("task") for member in members]
  found = (data_sets(manager, member) for member in names if member != name)
  return list(dict.fromkeys(itertools.chain(*found)))


def _load_with(manager: Any, names: Sequence[str], data: Path) -> dict[str, Any]:
  """Loads tasks or groups with a copy of the data, by YAML files that include their own."""
  from lm_eval.tasks import TaskManager

  index = manager.task_index
  with tempfile.TemporaryDirectory() as folder:
    for number, name in enumerate(names):
      local = {"include": str(index[name].yaml_path), "dataset_path": str(data.absolute())}
      # JSON is YAML.
      (Path(folder) / f"{number}.yaml").write_text(json.dumps(local))
    # By name, because lm-eval cannot load the file of a group.
    copies = TaskManager(include_path=folder, include_defaults=False).task_index
    before = {name: index[name] for name in names}
    index.update({name: copies[name] for name in names})
    try:
      return cast(dict[str, Any], manager.load(list(names)))
    finally:
      index.update(before)


def evaluate(
  model: HarnessModel,
  tasks: Sequence[Any],
  manager: Any,
  *,
  fewshot: int | None = None,
  limit: int | None = None,
  resamples: int = _RESAMPLES,
) -> dict[str, Any]:
  """Runs loaded tasks; returns lm-eval's results.

  Args:
    model: the model.
    tasks: see `load`.
    manager: the manager that loaded them.
    fewshot: examples before each question; None is the task's own number.
    limit: the most questions of a task; None is all.
    resamples: resamples for standard errors.
  """
  from lm_eval import evaluator

  logging.getLogger("lm_eval").setLevel(logging.WARNING)
  # Else lm-eval forks to resample, and a fork of a process with threads can hang.
  os.environ.setdefault("DISABLE_MULTIPROC", "1")
  results = evaluator.simple_evaluate(
    model,
    tasks=list(tasks),
    task_manager=manager,
    num_fewshot=fewshot,
    limit=limit,
    log_samples=False,
    bootstrap_iters=resamples,
    # Keeps lm-eval from importing torch to seed it: nothing uses torch here.
    # None is documented, but not in the type.
    torch_random_seed=None,  # pyright: ignore[reportArgumentType]
  )
  return cast(dict[str, Any], results)  # None only on hosts other than the first.


def score(
  model: HarnessModel, name: str, data: Path, *, fewshot: int, limit: int | None = None
) -> TaskScore:
  """Scores a model on one task or group, with a local copy of its data.

  Args:
    model: the model.
    name: the task or group of lm-eval.
    data: the folder of the copy.
    fewshot: examples before each question.
    limit: the most questions of a task, and of each task of a group; None is all.

  Raises:
    UserError: the data cannot be read, or an answer has more tokens than the model reads.
  """
  manager = manager_of([name])
  try:
    tasks = load(manager, name, data)
  except Exception as error:  # A data set's code may raise anything.
    raise UserError(
      f"the data of {name} in {data} cannot be read ({reason(error)}). Copy the data set again, "
      "with its README.md, or remove the folder to leave the task out."
    ) from error
  found = evaluate(model, tasks, manager, fewshot=fewshot, limit=limit, resamples=0)
  own = found["results"][name]
  accuracy = own.get("acc_norm,none", own.get("acc,none"))
  return TaskScore(float(accuracy), sum(n["effective"] for n in found["n-samples"].values()))


def reason(error: Exception) -> str:
  """Formats an error in one line."""
  text = str(error)
  return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
