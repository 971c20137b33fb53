"""Runs EleutherAI's lm-eval on a trained model, for `launch.evaluate --harness`."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from base import commands, heartbeat, paths
from base.errors import UserError
from experiment import trust
from launch import command, evaluation_files

if TYPE_CHECKING:
  from experiment.run_directory import RunDirectory
  from experiment.trained import TrainedModel
  from inference.decode_sharding import DecodeSharding


OPTIONS = ("include_path", "harness_data", "fewshot", "limit")


class Loaded(NamedTuple):
  """Tasks and groups of lm-eval with their data, and the manager that found them."""

  manager: Any
  tasks: list[Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments for lm-eval."""
  group = parser.add_argument_group("tasks of lm-eval (extra: harness)")
  group.add_argument("--harness", metavar="TASKS", help="tasks or groups, such as hellaswag,piqa")
  group.add_argument(
    "--include_path",
    type=paths.local_argument,
    help="a folder with your task YAMLs, in addition to lm-eval's; they may run code (`!function`)",
  )
  group.add_argument(
    "--harness_data",
    action="append",
    default=[],
    metavar="TASK=FOLDER",
    help="a local copy of a task's data set; may be repeated",
  )
  group.add_argument("--fewshot", type=int, help="examples before each question")
  group.add_argument("--limit", type=int, help="the most questions per task")


def run(
  args: argparse.Namespace,
  run_directory: RunDirectory,
  trained: TrainedModel,
  where: DecodeSharding,
) -> int:
  """Runs the tasks, prints lm-eval's table and stores its results; returns the exit status.

  Args:
    args: the command's arguments.
    run_directory: the run's directory.
    trained: the model.
    where: the devices.

  Raises:
    UserError: the extra is not installed, a task does not exist, or its data cannot be read.
  """
  try:
    from evaluation.harness import HarnessModel
    from evaluation.harness_table import table
  except ImportError as error:
    raise UserError(
      f"--harness needs lm-eval ({error}). Install it: make install EXTRAS=harness"
    ) from None
  from evaluation import harness_tasks
  from experiment import end_tokens
  from training.metrics import ProgressLine

  names = [name.strip() for name in args.harness.split(",") if name.strip()]
  if not names:
    raise UserError(f"--harness={args.harness} names no task. Give some: --harness=hellaswag,piqa.")
  loaded = _load(names, args.include_path, _local_copies(args.harness_data, names))
  experiment = trained.experiment
  length = args.length or experiment.sequence_length
  rows = args.batch_size or max(1, experiment.batch_size * experiment.sequence_length // length)
  progress: dict[str, ProgressLine] = {}

  def report(what: str, done: int, total: int) -> None:
    bar = progress.setdefault(what, ProgressLine(total, unit=what))
    if bar.is_due(done):
      bar.show(done, {})

  model = HarnessModel(
    experiment.model,
    trained.params,
    trained.tokenizer,
    max_length=length,
    tokens_at_once=rows * length,
    stop_ids=end_tokens.stop_ids(trained.run_dir, experiment),
    report=report,
    where=where,
  )
  results = harness_tasks.evaluate(
    model, loaded.tasks, loaded.manager, fewshot=args.fewshot, limit=args.limit
  )
  print(f"step {trained.step}, context length {length} tokens")
  print(table(results))
  if results.get("groups"):
    print(table(results, "groups"))
  _keep(results, run_directory, trained.step, length, args.harness)
  run_dir = f"--run_dir={paths.shown(run_directory.path)}"
  command.tell_next(*commands.words("generate"), run_dir, *trust.words(args.trust))
  return 0


def _local_copies(values: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
  """Parses the local data folders, by task.

  Raises:
    UserError: a value is not TASK=FOLDER, the task is not in `names`, or the folder is missing.
  """
  copies = {}
  for value in values:
    task, _, folder = value.partition("=")
    if task not in names or not Path(folder).is_dir():
      raise UserError(
        f"--harness_data={value} is not TASK=FOLDER with a task of --harness ({', '.join(names)}) "
        "and a folder that exists."
      )
    copies[task] = Path(folder)
  return copies


def _load(names: Sequence[str], include_path: Path | None, copies: dict[str, Path]) -> Loaded:
  """Loads tasks and their data by lm-eval's code.

  Raises:
    UserError: a task does not exist, or its data cannot be read.
  """
  from evaluation import harness_tasks

  # Without a network, it prints two lines for each try: the error says what to do.
  logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
  if include_path is not None and not include_path.is_dir():
    raise UserError(
      f"--include_path={include_path} is not a folder. Name one with YAML files of tasks."
    )
  manager = harness_tasks.manager_of(names, include_path)
  found: list[Any] = []
  for name in names:
    if name not in manager.all_tasks:
      # Thousands of names: with a lower cutoff, one of them resembles anything.
      near = difflib.get_close_matches(name, manager.all_tasks, n=1, cutoff=0.75)
      hint = f" Did you mean {near[0]!r}?" if near else " `lm-eval ls tasks` lists all."
      raise UserError(
        f"--harness={name}: lm-eval has no such task.{hint} Add your own with --include_path."
      )
    try:
      with heartbeat.telling(f"reading the data of {name}", _tell):
        found += harness_tasks.load(manager, name, copies.get(name))
    except Exception as error:  # A data set's code may raise anything.
      raise UserError(_no_data(name, manager, copies.get(name), error)) from error
  return Loaded(manager, found)


def _tell(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _no_data(name: str, manager: Any, copy: Path | None, error: Exception) -> str:
  from evaluation.harness_tasks import data_sets, reason

  if copy is not None:
    return f"the data of {name} in {copy} cannot be read ({reason(error)})."
  # A group of several would need a copy for each of its tasks.
  data_set = ", ".join(data_sets(manager, name)) or "its data set"
  return (
    f"the data of {name} ({data_set}) cannot be read here ({reason(error)}). Where there is a "
    f"network: hf download --repo-type dataset {data_set} --local-dir FOLDER. Then give that copy:"
    f" --harness_data={name}=FOLDER, or set HF_HOME to a cache that holds it and HF_HUB_OFFLINE=1."
  )


def _keep(results: Any, run: RunDirectory, step: int, length: int, names: str) -> None:
  """Stores the results with those of other evaluations."""
  kept = {
    name: results[name]
    for name in ("results", "groups", "n-shot", "higher_is_better", "n-samples", "versions")
    if name in results
  }
  words = "".join(c if c.isalnum() or c in "_-" else "_" for c in names)
  record = {"run_dir": str(run.path), "step": step, "length": length, **kept}
  evaluation_files.keep(run, f"{step}-harness-{words[:80]}-{length}", record, default=str)
