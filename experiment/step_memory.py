"""Refuses a training step that exceeds this machine's memory; tells the memory of a device."""

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
  """Compares a lower bound of a step's memory with this machine's, when training on the CPU.

  The bound counts the batch, and the input of each repeat of the model's pattern, which the
  backward pass needs whatever the remat policy, of a chunk of the row where it is run in chunks.
  Compiled steps often need many times as much.

  Args:
    model: the model.
    batch_size, length: rows per batch, and tokens per row.
    microbatches: number of microbatches.

  Raises:
    ConfigError: the bound exceeds the memory.
  """
  if jax.default_backend() != "cpu" or jax.process_count() > 1:
    return
  repeats = max(1, model.depth // len(model.pattern))
  width = model.width * jnp.dtype(model.dtype).itemsize
  tokens = batch_size * length
  at_once = batch_size // microbatches * min(length, model.time_chunk or length)
  needed = tokens * _BATCH_BYTES + at_once * width * repeats
  memory = _of_machine()
  if needed > memory:
    kept = plural(repeats, "input")
    raise ConfigError(
      f"a step does not fit into memory: it needs at least {needed / 1e9:,.0f} GB "
      f"({plural(batch_size, 'row')} of {plural(length, 'token')} at {_BATCH_BYTES} bytes, and "
      f"{kept} of {width:,} bytes per token in "
      f"{plural(microbatches, 'microbatch', 'microbatches')}); this machine has "
      f"{memory / 1e9:,.0f} GB. Lower --gin.BATCH_SIZE or --gin.SEQUENCE_LENGTH, raise "
      "--gin.MICROBATCHES, or run rows in chunks with gin/train/time_chunks.gin."
    )


def of_device() -> int | None:
  """Returns the bytes that this process may use of a device; None if the device does not tell.

  Simulated devices share the machine's memory.
  """
  device = jax.local_devices()[0]
  if device.platform == "cpu":
    return _of_machine() // jax.local_device_count()
  return (device.memory_stats() or {}).get("bytes_limit")


def _of_machine() -> int:
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
