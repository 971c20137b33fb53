"""Chooses the checkpoints to keep, and the best of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from base import small_files

HELDOUT = "heldout_loss"
UNJUDGED = "unjudged"


@dataclasses.dataclass(frozen=True)
class Retention:
  """Orbax's preservation policy: the newest few judged checkpoints, the best, and the newest.

  A checkpoint that was saved unjudged replaces none, and is removed when a later one is saved. The
  loss of a step is that of the parameters before it: without held-out losses, the newest judged
  checkpoint may already be bad, so the previous one stays too.

  Attributes:
    newest: number of judged checkpoints to keep.
  """

  newest: int

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any = None) -> list[bool]:
    """Returns whether to keep each; they have `step` and `metrics`, in the order of steps."""
    del context
    judged = [found for found in checkpoints if UNJUDGED not in (found.metrics or {})]
    losses = {found.step: loss_of(found.metrics) for found in judged}
    newest = self.newest
    if judged and losses[judged[-1].step] is None:
      newest = max(2, newest)
    stay = {found.step for found in [*checkpoints[-1:], *judged[-newest:]]} | {best(losses)}
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


def kept_loss(checkpoint: Path) -> float | None:
  """Reads the held-out loss of a checkpoint on disk; None if missing or unreadable."""
  return loss_of(_read(_file(checkpoint)))


def drop_unreadable(folder: Path) -> None:
  """Removes unreadable metrics: Orbax would reject the whole folder."""
  for file in folder.glob("*/metrics/metrics"):
    step = file.parent.parent.name
    if step.isdigit() and not isinstance(_read(file), dict):
      logging.getLogger(__name__).warning(
        "the held-out loss of checkpoint %s cannot be read: it cannot be the best", step
      )
      file.unlink()


def is_finite(tree: Any) -> bool:
  """Whether every float of a tree of arrays is finite; the same answer on every process."""
  floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
  return bool(_all_finite(floats))


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
  return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def _file(checkpoint: Path) -> Path:
  """Returns the file of a checkpoint's metrics."""
  return checkpoint / "metrics" / "metrics"


def _read(file: Path) -> Any:
  try:
    return json.loads(small_files.read(file) or b"")
  except (OSError, ValueError, RecursionError):
    return None
