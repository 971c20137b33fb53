"""Counts the activations that the backward pass keeps."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from models.accounting import abstract_parameters
from models.language_model import LanguageModel
from parallel.sharding_plan import ShardingPlan
from training import time_chunks
from training.losses import token_losses
from training.step import StepOptions, abstract_batch


def activation_bytes(
  model: LanguageModel, sharding_plan: ShardingPlan, options: StepOptions, *, rows: int, length: int
) -> int:
  """Counts the bytes per device of saved activations under the model's remat policy.

  Of rows in chunks of time these are the states between chunks, and the batch once more.

  Counted in a trace, without arrays. XLA may keep less, if it recomputes values or finds equal
  arrays.

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
    limit = options.max_logit_bytes
    losses, pull = jax.vjp(
      lambda params: token_losses(model, params, batch, max_logit_bytes=limit)[0], params
    )
    held = {id(leaf) for leaf in jax.tree.leaves((params, batch))}
    kept = {id(leaf): leaf for leaf in jax.tree.leaves(pull)}
    found = sum(leaf.nbytes for key, leaf in kept.items() if key not in held)
    if time_chunks.is_cut(model, batch):
      # Chunks keep the parameters too, which the trace does not know as those that it was given.
      found -= sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return losses

  params = nn.unbox(abstract_parameters(model))
  jax.eval_shape(sharding_plan.losses(forward), params, abstract_batch(rows, length))
  return found
