"""Scores a trained model on a recall task, for `launch.evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from base import commands
from evaluation.recall import Recalled, RecallScorer
from launch import command, evaluation_files

if TYPE_CHECKING:
  from data.recall import RecallTask
  from experiment.run_directory import RunDirectory
  from experiment.trained import TrainedModel
  from inference.decode_sharding import DecodeSharding

_KINDS = ("position", "distance", "depth")


def run(
  directory: RunDirectory,
  trained: TrainedModel,
  task: RecallTask,
  contexts: Sequence[int],
  batch_size: int | None,
  where: DecodeSharding,
  arguments: Sequence[str],
) -> int:
  """Scores the task at each context size, prints the accuracy and stores it.

  Args:
    directory: the run's directory.
    trained: the model.
    task: the recall task.
    contexts: context sizes in the task's unit; empty for the task's own size.
    batch_size: questions per batch; None for about 32,768 tokens.
    where: the devices.
    arguments: those of this command, which the next one repeats: the task may be from `--data`.

  Raises:
    CorpusError: a context size is impossible, or the run's tokenizer cannot encode the task.
  """
  asked = contexts or [task.length]
  for length in asked:
    task.with_length(length).require(trained.tokenizer)
  scorer = RecallScorer(trained.experiment.model, trained.tokenizer, where)
  how = "generated" if task.generates else "most likely after the true ones"
  print(f"step {trained.step} on {task.name}: answer tokens {how}")
  print(f"\n{task.unit:>10}  {'right':>6}  {'whole answers':>13}")
  total: Recalled | None = None
  lengths = []
  for length in asked:
    found = scorer(trained.params, task.with_length(length), batch_size=batch_size)
    print(f"{length:>10,}  {found.accuracy:>6.1%}  {found.exact:>13.1%}", flush=True)
    lengths.append({"length": length, "accuracy": found.accuracy, "exact": found.exact})
    total = found if total is None else total + found
  whole = cast(Recalled, total)  # There is at least one context.
  result = {
    "run_dir": str(directory.path),
    "step": trained.step,
    "task": task.describe(),
    "lengths": lengths,
    **{f"by_{kind}": [vars(share) for share in whole.by(kind)] for kind in _KINDS},
  }
  for kind in _KINDS:
    _print(kind, result[f"by_{kind}"])
  shown = "-".join(str(found["length"]) for found in lengths)
  evaluation_files.keep(directory, f"{trained.step}-{task.name}-{shown}", result)
  if not contexts:
    further = ",".join(str(task.length * times) for times in (1, 2, 4))
    command.tell_next(*commands.words("evaluate"), *arguments, f"--contexts={further}")
  return 0


def _print(kind: str, shares: Sequence[dict[str, Any]]) -> None:
  print(f"\n{kind:>10}  {'right':>6}  {'answers':>8}")
  for share in shares:
    start, stop = share["start"], share["stop"]
    if kind == "depth":
      place = f"{start:g}-{stop:g}"
    else:  # Whole numbers below `stop`.
      place = f"{start:g}" if stop - start == 1 else f"{start:g}-{stop - 1:g}"
    print(f"{place:>10}  {share['correct']:>6.1%}  {share['count']:>8,}")
