"""Generation with random parameters, for timing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from inference.decoder import Decoder
from inference.sampling import Sampler
from models.language_model import LanguageModel


class TimedGeneration:
  """Samples of a model, without stop tokens."""

  def __init__(self, model: LanguageModel, sampler: Sampler):
    """Sets the model and the sampler."""
    self._model = model
    self._decoder = Decoder(model, sampler)

  @functools.cached_property
  def _params(self) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return nn.unbox(jax.jit(self._model.init)(jax.random.key(0), tokens)["params"])

  def samples(self, batch_size: int, prefill: int, length: int) -> Callable[[], None]:
    """Returns a run from prompts of `prefill` tokens (0: BOS) to samples of `length` tokens."""
    prompts = self._prompts(batch_size, prefill)

    def run() -> None:
      for _ in self._decoder.generate(self._params, prompts, max_tokens=length):
        pass  # pieces are yielded on the host

    return run

  def steps(self, batch_size: int, after: int, count: int, runs: int) -> Callable[[], np.ndarray]:
    """Returns a run of `count` tokens per row, each continuing the previous run.

    Args:
      batch_size: number of rows.
      after: context length before the first run, which reads it.
      count: tokens per run.
      runs: number of runs, for the size of caches.
    """
    tokens = self._decoder.generate(
      self._params, self._prompts(batch_size, after), max_tokens=count * runs, chunk=count
    )
    return lambda: next(tokens)

  def _prompts(self, batch_size: int, length: int) -> list[list[int]]:
    shape = batch_size, max(length, 1)
    return np.random.default_rng(0).integers(0, self._model.vocab_size, shape).tolist()
