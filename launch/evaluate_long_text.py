"""Scores a trained model on a suite of tasks of long texts, for `launch.evaluate`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data.long_text import DEPTHLESS
from evaluation.recall import RecallScorer
from launch import evaluation_files

if TYPE_CHECKING:
  from data.long_text import Suite
  from experiment.run_directory import RunDirectory
  from experiment.trained import TrainedModel
  from inference.decode_sharding import DecodeSharding


def run(
  directory: RunDirectory,
  trained: TrainedModel,
  suite: Suite,
  contexts: Sequence[int],
  batch_size: int | None,
  where: DecodeSharding,
) -> int:
  """Scores each task at each length, prints shares of right answers by depth, and stores them.

  Args:
    directory: the run's directory.
    trained: the model.
    suite: the tasks.
    contexts: lengths in tokens; empty for the suite's own.
    batch_size: questions per batch; None for about 32,768 tokens.
    where: the devices.

  Raises:
    CorpusError: a length is too small for a task, or there is no text.
  """
  asked = contexts or [suite.length]
  for length in asked:
    # Told before the first is scored, which may take hours.
    suite.with_length(length).require(trained.tokenizer)
  scorer = RecallScorer(trained.experiment.model, trained.tokenizer, where)
  print(f"step {trained.step}: share of the answers that the generated text contains")
  lengths: list[dict[str, Any]] = []
  for length in asked:
    print(f"\n{length:,} tokens")
    found = {}
    for name, task in suite.with_length(length).by_name().items():
      found[name] = scorer(trained.params, task, batch_size=batch_size)
      print(f"{name:>16}  {found[name].accuracy:>6.1%}", flush=True)
    mean = float(np.mean([one.accuracy for one in found.values()]))
    print(f"{'mean':>16}  {mean:>6.1%}")
    lengths.append(
      {
        "length": length,
        "mean": mean,
        "tasks": {name: one.accuracy for name, one in found.items()},
      }
    )
    at_depths = [
      found[name]
      for name, task in zip(suite.names, suite.tasks, strict=True)
      if task.name not in DEPTHLESS
    ]
    if at_depths:
      together = functools.reduce(lambda one, more: one + more, at_depths)
      shares = [vars(share) for share in together.by("depth")]
      lengths[-1]["by_depth"] = shares
      print(f"{'depth':>16}  {'right':>6}")
      for share in shares:
        print(f"{share['start']:>12g}-{share['stop']:g}  {share['correct']:>6.1%}")
  result = {"run_dir": str(directory.path), "step": trained.step, "lengths": lengths}
  shown = "-".join(str(one["length"]) for one in lengths)
  evaluation_files.keep(
    directory,
    f"{trained.step}-{suite.name}-{shown}",
    {**result, "task": suite.describe()},
  )
  return 0
