"""States that a model carries from the end of one row to the start of the next.

Truncated backpropagation through time (Williams and Peng 1990): a document that is longer than a
row goes on in a later one, from the state that the row before it left, and the gradient ends where
the row starts. The state is the decoder's.

Rows are packed one by one, so a batch counts segments and positions from its own start. Segment 1
is the document that goes on; a row that begins a document starts with segment 2. So a row means the
same after any other, and no reader needs to know how far into a document it is: the state does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from base.errors import UserError
from data.lanes import OPTION
from models.accounting import abstract_parameters
from models.language_model import DecodeState, LanguageModel
from parallel import sequence, shards
from parallel.sharding_plan import TOKENS, ShardingPlan
from training.losses import MAX_LOGIT_BYTES, token_losses_from
from training.time_chunks import Batch

# Room for any window: nothing else of a state of constant size depends on it.
_ANY_WINDOW = 2**30


class CarryError(UserError, ValueError):
  """States cannot be carried from row to row as configured; the message says what to change."""


def check_model(model: LanguageModel, remedy: str = f"Set {OPTION}=False") -> None:
  """Raises CarryError if the state of one of a model's mixers grows with the tokens.

  Args:
    model: a language model of the zoo.
    remedy: what to do to carry no state.
  """
  for mixer in model.mixers():
    if not getattr(mixer, "constant_state", False):
      kind = type(mixer)
      raise CarryError(
        f"no state can be carried from row to row in a model with {kind.__module__}."
        f"{kind.__qualname__}, whose state grows with every token. {remedy}"
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


def restarted(model: LanguageModel, state: DecodeState, batch: Batch) -> DecodeState:
  """Returns the state behind a batch, with rows that nothing can follow started afresh.

  Those are rows that are not finite, so that text that makes a step fail spoils no later step, and
  rows that end in padding: recurrences have read it, and keys of the window are at positions of the
  document before it.
  """
  axes = batch_axes(model)
  kept = batch["segment_ids"][:, -1] > 0
  for leaf, axis in zip(jax.tree.leaves(state), jax.tree.leaves(axes), strict=True):
    if axis >= 0 and jnp.issubdtype(leaf.dtype, jnp.inexact):
      others = tuple(i for i in range(leaf.ndim) if i != axis)
      kept &= jnp.all(jnp.isfinite(leaf), axis=others)

  return chosen(model, kept, state)


def chosen(model: LanguageModel, kept: jax.Array, state: DecodeState) -> DecodeState:
  """Returns a state in which the rows of `kept`, [B] bool, stay, and the others start afresh."""

  def of_rows(leaf, first, axis):
    if axis < 0:
      return leaf
    return jnp.where(kept.reshape(*([-1] + [1] * (leaf.ndim - axis - 1))), leaf, first)

  return jax.tree.map(of_rows, state, initial_state(model, len(kept)), batch_axes(model))


def cut(model: LanguageModel, state: DecodeState, pieces: int) -> DecodeState:
  """Cuts a model's state by rows: each array gets a leading axis of pieces."""

  def piece(leaf, axis):
    if axis < 0:
      return jnp.broadcast_to(leaf, (pieces, *leaf.shape))
    shape = *leaf.shape[:axis], pieces, -1, *leaf.shape[axis + 1 :]
    return jnp.moveaxis(leaf.reshape(shape), axis, 0)

  return jax.tree.map(piece, state, batch_axes(model))


def joined(model: LanguageModel, pieces: DecodeState) -> DecodeState:
  """The inverse of `cut`."""

  def whole(leaf, axis):
    if axis < 0:
      return leaf[0]
    leaf = jnp.moveaxis(leaf, 0, axis)
    return leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])

  return jax.tree.map(whole, pieces, batch_axes(model))


def specs(model: LanguageModel, sharding_plan: ShardingPlan, rows: int) -> DecodeState:
  """Returns the PartitionSpecs of a state of `rows` rows, as the layers split it.

  Rows lie with those of the batch. Which other axes are split follows from the shapes that a device
  computes, so that a model needs no rules for its state. Devices along `seq` have copies.
  """
  # flax modules are hashable by their fields, which their type does not say.
  return _specs(cast(Hashable, model), sharding_plan, rows)


@functools.lru_cache(maxsize=16)
def _specs(model: Any, sharding_plan: ShardingPlan, rows: int) -> DecodeState:
  whole = jax.eval_shape(lambda: initial_state(model, rows))
  over = sharding_plan.batch.spec[0]
  table = sharding_plan.region.table
  region = sharding_plan.region._replace(
    table=tuple((axis, names if axis != sequence.AXIS else ()) for axis, names in table)
  )
  sizes = sharding_plan.sizes
  # Devices that share a row's channels, by their number.
  split = {
    math.prod(sizes[name] for name in names): names
    for axis, names in table
    if names and axis not in TOKENS
  }
  here = []

  def per_device(params, tokens):
    with shards.per_device(region):
      here.append(model.apply({"params": params}, tokens, capacity=_ANY_WINDOW)[1])
    return tokens

  params = nn.unbox(abstract_parameters(model))
  row = PartitionSpec(over)
  jax.eval_shape(
    jax.shard_map(
      per_device,
      mesh=sharding_plan.mesh,
      in_specs=(sharding_plan.tree(params, "stored"), row),
      out_specs=row,
      check_vma=False,
    ),
    params,
    jax.ShapeDtypeStruct((rows, 1), jnp.int32),
  )

  def spec(whole, part, axis):
    names: list[Any] = [None] * len(whole.shape)
    for i, (all_of_it, local) in enumerate(zip(whole.shape, part.shape, strict=True)):
      if i == axis:
        names[i] = over
      elif local != all_of_it:
        names[i] = split[all_of_it // local]
    return PartitionSpec(*names)

  return jax.tree.map(spec, whole, here[0], batch_axes(model))


def shardings(model: LanguageModel, sharding_plan: ShardingPlan, rows: int) -> DecodeState:
  """Returns the shardings of a state of `rows` rows; see `specs`."""
  return jax.tree.map(
    lambda spec: NamedSharding(sharding_plan.mesh, spec), specs(model, sharding_plan, rows)
  )
