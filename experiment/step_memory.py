"""Refuses a training step that no memory of this machine can hold, before anything is written."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp

from base.wording import plural
from config.place import ConfigError
from models.language_model import LanguageModel

# Inputs, targets, segments, positions and loss weights: see `training.step.abstract_batch`.
_BATCH_BYTES = 5 * 4


def check(model: LanguageModel, batch_size: int, length: int, microbatches: int) -> None:
  """Compares the least that a step takes with the memory of this machine, if a CPU does the work.

  Counted are the batch, and for each repeat of the model's pattern its input, which the backward
  pass needs whatever is recomputed. What the compiler needs besides is often many times as much.

  Args:
    model: what is trained.
    batch_size, length: the rows of a batch, and the tokens of a row.
    microbatches: pieces that the batch is cut into.

  Raises:
    ConfigError: there is less memory than that.
  """
  if jax.default_backend() != "cpu" or jax.process_count() > 1:
    return
  repeats = max(1, model.depth // len(model.pattern))
  width = model.width * jnp.dtype(model.dtype).itemsize
  tokens = batch_size * length
  needed = tokens * _BATCH_BYTES + tokens // microbatches * width * repeats
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if needed > memory:
    kept = plural(repeats, "input")
    raise ConfigError(
      f"a step does not fit into memory: {plural(batch_size, 'row')} of {plural(length, 'token')},"
      f" at {_BATCH_BYTES} bytes a token, and {kept} of {width:,} bytes a token in"
      f" {plural(microbatches, 'microbatch', 'microbatches')}, take at least {needed / 1e9:,.0f} "
      "GB;"
      f" this machine has {memory / 1e9:,.0f} GB. Lower --gin.BATCH_SIZE or "
      "--gin.SEQUENCE_LENGTH, or"
      " raise --gin.MICROBATCHES."
    )
