"""Names of the results that are dear to compute again.

A policy of `jax.checkpoint` can keep them by name (`layers.remat`). They are given inside the
forward rules of the gradients, because what a backward pass reads there is the result before any
name that a caller could give it. Outside `jax.checkpoint` a name changes nothing.
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
  """Names the outputs, and the logarithms of the softmax's sums, of an attention."""
  return tuple(checkpoint_name(result, ATTENTION) for result in results)
