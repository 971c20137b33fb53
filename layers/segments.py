"""Which document each token of a row belongs to, and where in it the token stands."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Segments(NamedTuple):
  """The document boundaries of a batch of rows.

  A segment is a contiguous run of tokens of one document. Mixers must not let information cross
  from one segment into another; position 0 is where a state starts afresh.

  Attributes:
    ids: [B, T] int32, one value per run; 0 marks padding.
    positions: [B, T] int32, the index of the token within its segment.
  """

  ids: jax.Array
  positions: jax.Array

  @property
  def starts(self) -> jax.Array:
    """[B, T] bool: where a segment starts, so that a state starts afresh; True on padding."""
    return self.positions == 0


def positions_in_segments(ids: jax.Array) -> jax.Array:
  """Counts tokens from the start of each run of equal ids.

  Args:
    ids: [B, T] int32 segment ids; 0 marks padding.

  Returns:
    [B, T] int32 positions; 0 on padding, so that padding never carries a state.
  """
  steps = jnp.arange(ids.shape[1], dtype=jnp.int32)
  is_start = jnp.concatenate([jnp.ones_like(ids[:, :1], bool), ids[:, 1:] != ids[:, :-1]], axis=1)
  start = jax.lax.cummax(jnp.where(is_start, steps, 0), axis=1)
  return jnp.where(ids == 0, 0, steps - start)
