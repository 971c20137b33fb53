"""What to do when a training cannot go on, in the words of its last line."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import optax

from training import retention
from training.checkpoint import FOLDER
from training.optimizer import rate_at


def suspects(run_dir: Path, step: int) -> str:
  """What to do after too many skips that began with the first step after a restored checkpoint."""
  folder = run_dir / FOLDER / str(step)
  told = (
    f"Checkpoint {step}, from which it went on, was good when it was saved, and stays: the batches "
    "or options of this start are suspect. Correct them, and go on with the same command."
  )
  if retention.kept_loss(folder) is not None:
    return told
  return f"{told} If they are right, move {folder} away: the run then goes on from the one before."


def remedy(run_dir: Path, good: int | None, learning_rate: optax.Schedule, steps: int) -> str:
  """What to do after too many skips, or in a state that is not finite."""
  rates = [rate_at(learning_rate, s) for s in np.linspace(0, steps, 100, dtype=int)]
  peak = float(np.max(rates))
  command = (
    f"python -m launch.train --run_dir={shlex.quote(str(run_dir))} --resume=force "
    f"--gin.LEARNING_RATE={peak / 2:.2g}"
  )
  if good is None:
    return f"No good checkpoint was saved before. Begin again, with a lower rate: {command}"
  return f"Checkpoint {good} is good. Go on from it, with a lower rate: {command}"
