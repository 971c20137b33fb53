"""Runs a row chunk by chunk, with the exact gradient of the whole row.

Every chunk goes through the whole network, from the state that the chunk before left: recurrences,
the last inputs of convolutions, and the keys and values of local attention. Of each chunk only that
state is kept. The backward pass starts with the last chunk: it computes the chunk's activations
again and takes the adjoint of its last state from the chunk behind it. So memory holds the
activations of one chunk and one state per border, whatever the length of the row. This is gradient
checkpointing over time (Chen et al. 2016, arXiv 1604.06174), not truncated backpropagation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from base.errors import UserError
from base.wording import plural
from models.language_model import DecodeState, LanguageModel
from parallel import sequence, shards
from parallel.mesh import FLAGS
from training import chunked_scan

Batch = dict[str, jax.Array]
# How messages call the option.
OPTION = "--gin.models.backbone.Backbone.time_chunk"


class ChunkError(UserError, ValueError):
  """Rows cannot be cut into chunks as configured; the message says what to change."""


def row_length(batch: Batch) -> int:
  """Returns the tokens of a batch's rows, on all devices that share them."""
  return batch["inputs"].shape[1] * shards.count(sequence.AXIS)


def is_cut(model: LanguageModel, batch: Batch) -> bool:
  """Whether the rows of a batch are run in chunks."""
  return model.time_chunk is not None and model.time_chunk < row_length(batch)


def check_length(model: LanguageModel, batch: Batch) -> None:
  """Raises ChunkError if a model's chunks do not divide the rows that it trains on."""
  size, length = model.time_chunk, row_length(batch)
  if size is not None and size < length and length % size:
    raise ChunkError(
      f"chunks of {plural(size, 'token')} do not divide rows of {plural(length, 'token')}: every "
      f"step would compute {-length % size} tokens of padding. Set {OPTION} to a divisor of "
      "--gin.SEQUENCE_LENGTH."
    )


def run(
  function: chunked_scan.Chunk,
  model: LanguageModel,
  params: Any,
  batch: Batch,
  state: DecodeState | None = None,
) -> tuple[Any, DecodeState]:
  """Calls a function on one chunk of a batch after the other.

  The gradients of the chunks add up in float32, whatever the parameters' type.

  Args:
    function: `function(params, chunk, state, index) -> (results, state)`, with arrays [B, C] of a
      batch, the state before and after the chunk, and the chunk's number.
    model: the model, whose `time_chunk` is C.
    params: its parameters.
    batch: arrays [B, T]. A last chunk that is shorter is filled with padding.
    state: the state before the first chunk; None starts from nothing.

  Returns:
    the results, arrays [B, T], and the state behind the last chunk.

  Raises:
    ChunkError: a mixer has no state of a fixed size that gradients pass, or devices that share rows
      cannot share a chunk.
  """
  _check_model(model)
  layout = _layout(model, batch)
  before = _state_before(model, params, batch) if state is None else state
  chunks = jax.tree.map(layout.cut, batch)
  results, after = chunked_scan.scan(function, params, before, chunks)
  return jax.tree.map(layout.joined, results), after


def first(model: LanguageModel, params: Any, batch: Batch) -> tuple[Batch, DecodeState, int]:
  """Returns this device's part of the first chunk, the state before it, and the number of chunks.

  Raises:
    ChunkError: as of `run`.
  """
  _check_model(model)
  layout = _layout(model, batch)
  chunk = jax.tree.map(lambda x: layout.cut(x)[0], batch)
  return chunk, _state_before(model, params, batch), layout.count


class _Layout(NamedTuple):
  """How rows are cut: every device that shares a row has a part of each chunk.

  Attributes:
    size: tokens of a chunk.
    count: number of chunks.
    length: tokens of a row.
  """

  size: int
  count: int
  length: int

  def cut(self, x: jax.Array) -> jax.Array:
    """This device's part of each chunk, [count, B, C], of its part of each row [B, T]."""
    split = sequence.is_split()
    # Integers and loss weights, 20 bytes per token: little beside a chunk's activations.
    x = lax.all_gather(x, shards.mesh_axes(sequence.AXIS), axis=1, tiled=True) if split else x
    x = jnp.pad(x, [(0, 0), (0, self.count * self.size - self.length)])
    x = x.reshape(len(x), self.count, shards.count(sequence.AXIS), -1)
    return jnp.moveaxis(lax.dynamic_index_in_dim(x, sequence.number(), 2, keepdims=False), 1, 0)

  def joined(self, x: jax.Array) -> jax.Array:
    """The inverse of `cut`: [B, T] from [count, B, C]."""
    x = jnp.moveaxis(x, 0, 1)[:, :, None]
    names = shards.mesh_axes(sequence.AXIS)
    x = lax.all_gather(x, names, axis=2, tiled=True) if sequence.is_split() else x
    x = x.reshape(len(x), self.count * self.size)
    here = self.length // shards.count(sequence.AXIS)
    return lax.dynamic_slice_in_dim(x, sequence.number() * here, here, axis=1)


def _layout(model: LanguageModel, batch: Batch) -> _Layout:
  size, length = model.time_chunk or 0, row_length(batch)
  return _Layout(size, -(-length // size), length)


def _check_model(model: LanguageModel) -> None:
  size, devices = model.time_chunk or 0, shards.count(sequence.AXIS)
  if size % devices:
    raise ChunkError(
      f"chunks of {plural(size, 'token')} cannot be shared by the {devices} devices that share a "
      f"row. Set {OPTION} to a multiple of {devices}, or {FLAGS['seq']} to a divisor of {size}."
    )
  for mixer in model.mixers():
    kind = type(mixer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if not getattr(mixer, "constant_state", False):
      raise ChunkError(
        f"rows cannot be cut into chunks in a model with {name}, whose state grows with the row: "
        f"every border would keep all tokens before it. Set {OPTION}=None"
        f"{', or train a model with local attention' if hasattr(mixer, 'window') else ''}."
      )
    if not getattr(mixer, "differentiable_state", True):
      raise ChunkError(
        f"rows cannot be cut into chunks in a model with {name}: it declares "
        f"differentiable_state=False, so the gradient would end at each border. Set {OPTION}=None."
      )


def _state_before(model: LanguageModel, params: Any, batch: Batch) -> DecodeState:
  """The state before the first token; where channels are split, this device's part."""
  rows, length = len(batch["inputs"]), row_length(batch)

  def first_token(params, batch):
    ids, positions = batch["segment_ids"][:, :1], batch["positions"][:, :1]
    return model.apply(
      {"params": params},
      batch["inputs"][:, :1],
      segment_ids=ids,
      positions=positions,
      capacity=length,
    )[1]

  def part(whole, here):
    # A state starts alike in all channels, so that any part of the whole has the right size.
    return whole[tuple(slice(size) for size in here.shape)]

  with shards.unsplit(sequence.AXIS):
    here = jax.eval_shape(first_token, params, batch)
  return jax.tree.map(part, model.initial_state(rows, length), here)
