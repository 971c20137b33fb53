"""Chooses the checkpoints to keep, and the best of them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from base import buckets, paths, small_files
from training import json_files
from training.checkpoint_reader import METADATA, METRICS, is_whole, sealed_contents
from training.metrics import METRICS_FILE, read_metrics

HELDOUT = "heldout_loss"
UNJUDGED = "unjudged"
# Orbax's folder of a checkpoint's metrics.
_FOLDER = "metrics"


@dataclasses.dataclass(frozen=True)
class Retention:
  """Orbax's preservation policy: the newest few judged checkpoints, the best, and the newest.

  A checkpoint that was saved unjudged replaces none, and is removed when a later one is saved. The
  loss of a step is that of the parameters before it: without held-out losses, the newest judged
  checkpoint may already be bad, so the previous one stays too.

  Attributes:
    newest: number of judged checkpoints to keep.
    lost: steps of checkpoints whose metrics are lost; they stay, because one may be the best.
  """

  newest: int
  lost: frozenset[int] = frozenset()

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any = None) -> list[bool]:
    """Returns whether to keep each; they have `step` and `metrics`, in the order of steps."""
    del context
    judged = [found for found in checkpoints if UNJUDGED not in (found.metrics or {})]
    losses = {found.step: loss_of(found.metrics) for found in judged}
    newest = self.newest
    if judged and losses[judged[-1].step] is None:
      newest = max(2, newest)
    stay = (
      {found.step for found in [*checkpoints[-1:], *judged[-newest:]]} | {best(losses)} | self.lost
    )
    return [found.step in stay for found in checkpoints]


def metrics(heldout_loss: float | None, judged: bool) -> dict[str, float] | None:
  """Returns the metrics that `Retention` needs with a checkpoint."""
  found = {} if judged else {UNJUDGED: 1.0}
  if heldout_loss is not None and math.isfinite(heldout_loss):
    found[HELDOUT] = heldout_loss
  return found or None


def best(losses: Mapping[int, float | None]) -> int | None:
  """Returns the step with the lowest held-out loss; None if no step has one."""
  scored = {step: loss for step, loss in losses.items() if loss is not None}
  return min(scored, key=scored.__getitem__, default=None)


def loss_of(found: Any) -> float | None:
  """Returns the held-out loss in a checkpoint's metrics; None if missing or not finite."""
  try:
    loss = float(found[HELDOUT])
  except (KeyError, TypeError, ValueError):
    return None
  return loss if math.isfinite(loss) else None


def kept_metrics(checkpoint: Path) -> dict[str, Any] | None:
  """Reads the metrics of a checkpoint on disk; None if they are lost, so that it may be the best.

  Their sealed copy counts. Checkpoints of earlier versions have only the file, whose loss is in
  their sealed metadata too; if the file cannot be read, the run's log may have the loss.

  Raises:
    OSError: they could not be read this time.
  """
  contents = sealed_contents(checkpoint) or {}
  if isinstance(contents.get(METRICS), dict):
    return contents[METRICS]
  found = _read(_file(checkpoint))
  if found is not None:
    metadata = contents.get(METADATA)
    evaluated = loss_of(metadata.get("heldout")) if isinstance(metadata, dict) else None
    has_loss = evaluated is not None and HELDOUT in found
    return {**found, HELDOUT: evaluated} if has_loss else found
  if (logged := _logged_loss(checkpoint)) is not None:
    return {HELDOUT: logged}
  return None if _lies(checkpoint / _FOLDER) else {}


def _logged_loss(checkpoint: Path) -> float | None:
  """Returns the held-out loss that the run's log has at the checkpoint's step."""
  log = checkpoint.parent.parent / METRICS_FILE
  if not log.is_file():
    return None
  records = [r for r in read_metrics(log) if str(r["step"]) == checkpoint.name and HELDOUT in r]
  return loss_of(records[-1]) if records else None


def may_be_good(checkpoint: Path) -> bool:
  """Whether a checkpoint has a finite held-out loss, or may have had one that cannot be read."""
  try:
    found = kept_metrics(checkpoint)
  except OSError:
    return True
  return found is None or loss_of(found) is not None


def lost(checkpoint: Path) -> str:
  """Says that a checkpoint's held-out loss is lost."""
  return (
    f"the held-out loss of checkpoint {checkpoint.name} is lost ({paths.shown(_file(checkpoint))} "
    "cannot be read): it cannot be chosen as the best, only by its step"
  )


def repair(folder: Path, aside: Path) -> list[int]:
  """Restores damaged metrics of a run's checkpoints: Orbax would reject the whole folder.

  Args:
    folder: the folder of the checkpoints.
    aside: the folder that damaged files are moved to.

  Returns:
    the steps of the checkpoints whose metrics are lost. They may be the best: keep them.

  Raises:
    OSError: a file could not be read this time, or not be written.
  """
  steps = []
  for checkpoint in sorted(folder.glob("*")):
    if not checkpoint.name.isdecimal() or not is_whole(checkpoint):
      continue
    found, file = kept_metrics(checkpoint), _file(checkpoint)
    damaged = file if file.parent.is_dir() else file.parent
    if found is None:
      steps.append(int(checkpoint.name))
      print(f"warning: {lost(checkpoint)}; it is kept", file=sys.stderr)
    elif found == _read(file) or not (found or _lies(damaged)):
      continue
    if _lies(damaged):
      aside.mkdir(exist_ok=True)
      damaged.rename(paths.free(aside / f"{checkpoint.name}_metrics"))
    if found is None or found:
      # Without the folder, the checkpoint would be one that never had a loss.
      file.parent.mkdir(exist_ok=True)
    if found:
      small_files.replace(file, json.dumps(found))
    if found is not None:
      print(f"warning: {paths.shown(file)} was damaged; it is restored", file=sys.stderr)
  return steps


def is_finite(tree: Any) -> bool:
  """Whether every float of a tree of arrays is finite; the same answer on every process."""
  floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
  return all(jax.device_get([_all_finite(leaf) for leaf in floats]))


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
  # A program per shape: one for all arrays took half as long to compile as a training step.
  return jnp.all(jnp.isfinite(x))


def _lies(path: Path) -> bool:
  """Whether something is at a path, even a link to nothing."""
  return path.exists() if buckets.in_bucket(path) else os.path.lexists(path)


def _file(checkpoint: Path) -> Path:
  """Returns the file of a checkpoint's metrics."""
  return checkpoint / _FOLDER / "metrics"


def _read(file: Path) -> dict[str, float | None] | None:
  """Reads a file of metrics; None if it is missing, or has other contents than were ever saved."""
  try:
    found = json.loads(small_files.read(file) or b"")
  except (ValueError, RecursionError):
    return None
  if not isinstance(found, dict) or not found:
    return None
  if any(type(value) not in (int, float) for value in found.values()):
    return None
  # Earlier versions also saved NaN, which is not equal to itself.
  return json_files.without_nan(found)
