"""Checkpoint names of expensive results.

A policy of `jax.checkpoint` can keep results by name (`layers.remat`). The names are set inside the
forward rules of custom gradients: a name that a caller sets comes too late, because the backward
pass reads the result without it. Outside `jax.checkpoint` a name changes nothing.
"""

from __future__ import annotations

from typing import Any

from jax.ad_checkpoint import checkpoint_name

RECURRENCE = "recurrence"
ATTENTION = "attention"


def recurrence(*results: Any) -> tuple[Any, ...]:
  """Names the states that a recurrence's backward pass reads."""
  return tuple(checkpoint_name(result, RECURRENCE) for result in results)


def attention(*results: Any) -> tuple[Any, ...]:
  """Names the outputs of attention, and the logarithms of its softmax sums."""
  return tuple(checkpoint_name(result, ATTENTION) for result in results)
