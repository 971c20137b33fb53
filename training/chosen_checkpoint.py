"""Chooses a checkpoint of a run, by its step or its held-out loss."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from base import paths
from training import retention
from training.checkpoint_reader import CheckpointError
from training.reading import Damage

T = TypeVar("T")


def read(
  folder: Path, steps: list[int], which: str | int, reader: Callable[[Path, str], T]
) -> tuple[T, int]:
  """Reads a checkpoint of a run.

  Args:
    folder: the folder of the run's checkpoints.
    steps: their steps.
    which: 'latest', 'best' (by held-out loss) or a step.
    reader: `reader(folder, where)` reads one; `where` names it in errors.

  Returns:
    what the reader returns, and the step.

  Raises:
    CheckpointError: there is no such checkpoint, or it is damaged.
  """
  run_dir = folder.parent
  if not steps:
    raise CheckpointError(f"{paths.shown(run_dir)} has no checkpoint yet. Train it first.")
  step = choose(folder, steps, which)
  where = f"{paths.shown(run_dir)}, checkpoint {step}"
  try:
    return reader(folder / str(step), where), step
  except Damage as error:
    others = [s for s in steps if s != step]
    remedy = (
      f"Choose another step ({', '.join(map(str, others))}), or move its folder away."
      if others
      else "There is no other: restore its files from a copy, or train again."
    )
    raise CheckpointError(f"{where} cannot be read: {error}. {remedy}") from error


def choose(folder: Path, steps: list[int], which: str | int) -> int:
  """Returns the step of a checkpoint; the arguments are those of `read`.

  Raises:
    CheckpointError: there is no such checkpoint.
  """
  if which == "latest":
    return steps[-1]
  if which == "best" and len(steps) == 1:
    return steps[0]
  if which == "best":
    metrics = {step: retention.kept_metrics(folder / str(step)) for step in steps}
    for step in (step for step, known in metrics.items() if known is None):
      print(f"warning: {retention.lost(folder / str(step))}", file=sys.stderr)
    found = retention.best({step: retention.loss_of(known) for step, known in metrics.items()})
    if found is None:
      raise CheckpointError(
        f"{folder.parent} has no checkpoint with a held-out loss. Use 'latest', or evaluate during "
        "training."
      )
    return found
  if which not in steps:
    raise CheckpointError(
      f"{folder.parent} has no checkpoint {repr(which)[:40]}. Choose 'latest', 'best' or a step of "
      f"{steps}."
    )
  return int(which)
