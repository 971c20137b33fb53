"""Advice for a run that cannot continue, for the end of its error."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import optax

from base import commands, paths
from training import retention
from training.checkpoint import FOLDER
from training.optimizer import rate_at


def suspects(run_dir: Path, step: int) -> str:
  """Advises after too many skips that began with the first step after a restored checkpoint."""
  folder = run_dir / FOLDER / str(step)
  told = (
    f"The run continued from checkpoint {step}, which was good when saved: check the batches and "
    "options of this start, correct them, and run the same command again."
  )
  if retention.may_be_good(folder):
    return told
  shown = paths.shown(folder)
  return f"{told} If they are right, move {shown} away to continue from the previous checkpoint."


def remedy(run_dir: Path, good: int | None, learning_rate: optax.Schedule, steps: int) -> str:
  """Advises after too many skips, or about a state that is not finite."""
  rates = [rate_at(learning_rate, s) for s in np.linspace(0, steps, 100, dtype=int)]
  peak = float(np.max(rates))
  command = (
    f"{commands.line('train')} --run_dir={shlex.quote(paths.shown(run_dir))} --resume=force "
    f"--gin.LEARNING_RATE={peak / 2:.2g}"
  )
  if good is None:
    return f"No good checkpoint was saved before. Start again with a lower rate: {command}"
  return f"Checkpoint {good} is good. Continue from it with a lower rate: {command}"
