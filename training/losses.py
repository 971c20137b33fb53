"""The loss of every token of a batch."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from models.language_model import DecodeState, LanguageModel
from parallel import sharded_vocabulary, shards
from training import time_chunks
from training.time_chunks import Batch

MAX_LOGIT_BYTES = 2**28


def token_losses(
  model: LanguageModel,
  params: Any,
  batch: Batch,
  rng: jax.Array | None = None,
  max_logit_bytes: int = MAX_LOGIT_BYTES,
) -> tuple[jax.Array, jax.Array]:
  """Computes each target's negative log-likelihood and squared log of the softmax's sum.

  Args:
    model: a language model of the zoo.
    params: its parameters.
    batch: inputs, targets, segment_ids, positions [B, T] int32; loss_weights [B, T] float32.
    rng: key for models with randomness.
    max_logit_bytes: see `training.step.StepOptions`.

  Returns:
    two float32 arrays [B, T], multiplied by the loss weights. Large logits are never all in memory
    at once: pieces of the time axis are computed one after the other. Rows longer than the model's
    `time_chunk` go through the whole network in chunks.

  Raises:
    ValueError: rows are cut into chunks, and the model or the mesh does not allow it.
  """
  return token_losses_from(None, model, params, batch, rng, max_logit_bytes)[0]


def token_losses_from(
  state: DecodeState | None,
  model: LanguageModel,
  params: Any,
  batch: Batch,
  rng: jax.Array | None = None,
  max_logit_bytes: int = MAX_LOGIT_BYTES,
) -> tuple[tuple[jax.Array, jax.Array], DecodeState | None]:
  """Computes `token_losses` of rows that continue from a state, and the state behind them.

  Gradients pass through both states; a caller that wants them to end at the rows' start stops them
  there. Segment ids and positions of the batch are those of the whole documents: a row continues a
  document where its first id is that of the state and its first position is not 0. For batches
  that count both from the row's start, see `training.carried_state`.

  Args:
    state: the state before the rows, as `LanguageModel.initial_state` or an earlier call made it;
      where a mesh splits rows or channels, this device's part. None starts from nothing.
    model, params, batch, rng, max_logit_bytes: as in `token_losses`.

  Returns:
    the losses, and the state behind the last token; None if there was none before.

  Raises:
    ValueError: as `token_losses`; also if the chunks of `time_chunk` do not divide rows with a
      state, since the state would be that behind the padding.
  """
  if not time_chunks.is_cut(model, batch):
    return losses_of_chunk(model, params, batch, rng, max_logit_bytes, state)
  if state is not None:
    time_chunks.check_length(model, batch)

  def chunk(params, piece, state, index):
    key = None if rng is None else jax.random.fold_in(rng, index)
    return losses_of_chunk(model, params, piece, key, max_logit_bytes, state)

  losses, after = time_chunks.run(chunk, model, params, batch, state)
  return losses, None if state is None else after


def losses_of_chunk(
  model: LanguageModel,
  params: Any,
  batch: Batch,
  rng: jax.Array | None,
  max_logit_bytes: int,
  state: DecodeState | None = None,
) -> tuple[tuple[jax.Array, jax.Array], DecodeState | None]:
  """Returns `token_losses` of one chunk, and the state behind it if there was one before."""
  # Bound once, so that ZeRO stage 3 gathers the embedding and the output matrix once, outside the
  # loop over pieces, and reduce-scatters their gradients once.
  bound = model.bind({"params": params}, rngs=None if rng is None else {"dropout": rng})
  hidden, state = bound.hidden(
    batch["inputs"],
    segment_ids=batch["segment_ids"],
    positions=batch["positions"],
    state=state,
  )

  @jax.named_scope("loss")
  def losses(hidden, targets, weights):
    logits = bound.logits(hidden)
    log_total = sharded_vocabulary.logsumexp(logits)
    chosen = sharded_vocabulary.pick(logits, targets)
    return (log_total - chosen) * weights, jnp.square(log_total) * weights

  length = hidden.shape[1]
  logit_bytes = hidden.shape[0] * length * shards.local(model.padded_vocab_size, "vocab") * 4
  pieces, size = _pieces(length, math.ceil(logit_bytes / max_logit_bytes))
  arguments = (hidden, batch["targets"], batch["loss_weights"])
  if pieces == 1:
    return losses(*arguments), state

  def cut(x):
    # The padding has loss weight 0.
    x = jnp.pad(x, [(0, 0), (0, pieces * size - length), *[(0, 0)] * (x.ndim - 2)])
    return jnp.moveaxis(x.reshape(x.shape[0], pieces, size, *x.shape[2:]), 1, 0)

  def piece(carry, inputs):
    return carry, jax.checkpoint(losses)(*inputs)

  def together(x):
    return jnp.moveaxis(x, 0, 1).reshape(len(hidden), pieces * size)[:, :length]

  _, (nll, squares) = jax.lax.scan(piece, None, tuple(map(cut, arguments)))
  return (together(nll), together(squares)), state


def _pieces(length: int, least: int) -> tuple[int, int]:
  """Returns the number of pieces of a row and the tokens of each; the last may be padded.

  Args:
    length: tokens of a row.
    least: the least number of pieces that keeps the logits small enough.
  """
  least = max(1, min(least, length))
  # Twice as many as needed cost little; without padding, a prime length would need one per token.
  for pieces in range(least, min(2 * least, length) + 1):
    if length % pieces == 0:
      return pieces, length // pieces
  size = -(-length // least)
  return -(-length // size), size
