"""States that a model carries from the end of one row to the start of the next.

Truncated backpropagation through time (Williams and Peng 1990): a document that is longer than a
row goes on in a later one, from the state that the row before it left, and the gradient ends where
the row starts. The state is the decoder's.

Rows are packed one by one, so a batch counts segments and positions from its own start. Segment 1
is the document that goes on; a row that begins a document starts with segment 2. So a row means the
same after any other, and no reader needs to know how far into a document it is: the state does.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from base.errors import UserError
from models.language_model import DecodeState, LanguageModel
from parallel import sequence, shards
from training.losses import MAX_LOGIT_BYTES, token_losses_from
from training.time_chunks import Batch

# Room for any window: nothing else of a state of constant size depends on it.
_ANY_WINDOW = 2**30


class CarryError(UserError, ValueError):
  """States cannot be carried from row to row as configured; the message says what to change."""


def check_model(model: LanguageModel) -> None:
  """Raises CarryError if the state of one of a model's mixers grows with the tokens."""
  for mixer in model.mixers():
    if not getattr(mixer, "constant_state", False):
      kind = type(mixer)
      raise CarryError(
        f"no state can be carried from row to row in a model with {kind.__module__}."
        f"{kind.__qualname__}, whose state grows with every token. Set "
        "--gin.experiment.Experiment.carry_state=False"
        f"{', or train a model with local attention' if hasattr(mixer, 'window') else ''}."
      )


def initial_state(model: LanguageModel, rows: int) -> DecodeState:
  """Makes the state before any token, with room for whole windows of local attention.

  Args:
    model: a language model of the zoo.
    rows: B.

  Raises:
    CarryError: see `check_model`.
  """
  check_model(model)
  return model.initial_state(rows, _ANY_WINDOW)


def batch_axes(model: LanguageModel) -> DecodeState:
  """Finds the axis of each array of a model's state that counts rows; -1 where none does."""
  one, two = (jax.eval_shape(lambda n=n: initial_state(model, n)) for n in (1, 2))

  def axis(a, b):
    return next((i for i, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n), -1)

  return jax.tree.map(axis, one, two)


def losses_from(
  state: DecodeState,
  model: LanguageModel,
  params: Any,
  batch: Batch,
  rng: jax.Array | None = None,
  max_logit_bytes: int = MAX_LOGIT_BYTES,
) -> tuple[tuple[jax.Array, jax.Array], DecodeState]:
  """Computes the losses of rows that follow others, and the state behind them.

  Gradients pass through both states: stop them to end at the rows' start.

  Args:
    state: the state before the rows: `initial_state`, or what an earlier call returned.
    batch: as of `training.losses.token_losses`; segment 1 continues what the state has seen.
    model, params, rng, max_logit_bytes: as of `training.losses.token_losses`.

  Returns:
    `training.losses.token_losses`, and the state after the last token.

  Raises:
    ValueError: see `training.losses.token_losses_from`.
  """
  batch = continued(state, batch)
  losses, after = token_losses_from(state, model, params, batch, rng, max_logit_bytes)
  assert after is not None
  # Also behind padding, segments go on counting: a window may hold tokens of any of them.
  last = jnp.max(batch["segment_ids"], axis=1, initial=0)
  names = shards.mesh_axes(sequence.AXIS)
  last = lax.pmax(last, names) if names else last
  return losses, after._replace(segment_id=jnp.maximum(state.segment_id, last))


def continued(state: DecodeState, batch: Batch) -> Batch:
  """Returns a batch with segments and positions counted on from a state.

  After `initial_state` they stay as they are.
  """
  ids, positions = batch["segment_ids"], batch["positions"]
  goes_on = ids == 1
  return {
    **batch,
    "segment_ids": jnp.where(ids > 0, ids + state.segment_id[:, None] - 1, 0),
    "positions": positions + jnp.where(goes_on, state.position[:, None], 0),
  }
