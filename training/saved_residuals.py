"""Counts the activations that the backward pass keeps."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from models.accounting import abstract_parameters
from models.language_model import LanguageModel
from parallel.sharding_plan import ShardingPlan
from training import time_chunks
from training.losses import losses_of_chunk
from training.step import StepOptions, abstract_batch


def activation_bytes(
  model: LanguageModel, sharding_plan: ShardingPlan, options: StepOptions, *, rows: int, length: int
) -> int:
  """Counts the bytes per device of saved activations under the model's remat policy.

  Counted in a trace, without arrays. XLA may keep less, if it recomputes values or finds equal
  arrays. Of rows in chunks of time these are the activations of a chunk, the states between chunks,
  and the batch once more.

  Args:
    model: a language model of the zoo.
    sharding_plan: the mesh and where parameters lie on it.
    options: the training step's.
    rows: rows of a microbatch, on all devices together.
    length: tokens per row.
  """
  found = 0

  def forward(params: Any, batch: Any) -> jax.Array:
    nonlocal found
    limit, piece, state, borders = options.max_logit_bytes, batch, None, 0
    if time_chunks.is_cut(model, batch):
      piece, state, borders = time_chunks.first(model, params, batch)
    _, pull = jax.vjp(
      lambda params, state: losses_of_chunk(model, params, piece, None, limit, state)[0][0],
      params,
      state,
    )
    held = {id(leaf) for leaf in jax.tree.leaves((params, piece, state))}
    kept = {id(leaf): leaf for leaf in jax.tree.leaves(pull)}
    found = sum(leaf.nbytes for key, leaf in kept.items() if key not in held)
    found += borders * sum(leaf.nbytes for leaf in jax.tree.leaves((state, piece)))
    return batch["loss_weights"]

  params = nn.unbox(abstract_parameters(model))
  jax.eval_shape(sharding_plan.losses(forward), params, abstract_batch(rows, length))
  return found
