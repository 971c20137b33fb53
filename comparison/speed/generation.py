"""Generating with a model whose parameters are random: runs to be timed."""

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
  """Samples of one model, with nothing that ends a row."""

  def __init__(self, model: LanguageModel, sampler: Sampler):
    """Takes the model and how tokens are drawn."""
    self._model = model
    self._decoder = Decoder(model, sampler)

  @functools.cached_property
  def _params(self) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return nn.unbox(jax.jit(self._model.init)(jax.random.key(0), tokens)["params"])

  def samples(self, batch_size: int, prefill: int, length: int) -> Callable[[], None]:
    """A run from prompts of `prefill` tokens (0: BOS alone) to samples of `length` tokens."""
    prompts = self._prompts(batch_size, prefill)

    def run() -> None:
      for _ in self._decoder.generate(self._params, prompts, max_tokens=length):
        pass  # each piece is on the host when it comes

    return run

  def steps(self, batch_size: int, after: int, count: int, runs: int) -> Callable[[], np.ndarray]:
    """A run of `count` tokens per row that go on where the last run stopped.

    Args:
      batch_size: rows.
      after: tokens before the first run, which reads them.
      count: tokens of a run.
      runs: how many runs there will be: the baseline's cache has room for so many tokens.
    """
    tokens = self._decoder.generate(
      self._params, self._prompts(batch_size, after), max_tokens=count * runs, chunk=count
    )
    return lambda: next(tokens)

  def _prompts(self, batch_size: int, length: int) -> list[list[int]]:
    shape = batch_size, max(length, 1)
    return np.random.default_rng(0).integers(0, self._model.vocab_size, shape).tolist()
