"""MAD's compression: does a model gather a whole sequence at its last token?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Iterator
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from base.ranges import Count, Seed
from comparison.quality.recall_learning import Schedule
from models.language_model import LanguageModel
from training import rates

# Keys of the random generators.
_TRAINING, _SPLITS = 1_000, ("heldout", "validation")
_PASS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compression:
  """Give all symbols of a random sequence from the hidden state at its last token alone.

  Poli et al. 2024 (arXiv 2403.17844, section 3; the authors' task configuration and auto-encoder):
  the last symbol marks the end. A decoder that is trained with the model, and reads nothing but the
  last token's normalised hidden state and the place's sinusoid, gives the symbol of each place. The
  published sizes are 16 symbols and 32 tokens.

  Attributes:
    length: number of tokens, with the mark.
    symbols: size of the vocabulary, with the mark.
    seed: seed of all examples.
  """

  length: Count = 32
  symbols: Count = 16
  seed: Seed = 0

  name = "compression"
  published = "arXiv 2403.17844"

  def __post_init__(self):
    if self.length < 2 or self.symbols < 3:
      raise ValueError(
        f"compression of length={self.length} and symbols={self.symbols}: give at least 2 and 3."
      )

  def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws examples [count, length] int32; symbol n is the id n."""
    tokens = rng.integers(0, self.symbols - 1, (count, self.length), np.int32)
    tokens[:, -1] = self.symbols - 1
    return tokens


class Decoder(nn.Module):
  """The decoder: two layers as wide as the model, and logits.

  Attributes:
    width, symbols: sizes of its input and output.
  """

  width: int
  symbols: int

  @nn.compact
  def __call__(self, last: jax.Array, length: int) -> jax.Array:
    """Maps hidden states [B, D] to logits [B, length, symbols]."""
    x = last[:, None].astype(jnp.float32) + _sinusoids(length, self.width)
    for layer in range(2):
      x = nn.RMSNorm(name=f"norm_{layer}")(x)
      x = nn.gelu(nn.Dense(self.width, name=f"dense_{layer}")(x))
    return nn.Dense(self.symbols, name="output")(nn.RMSNorm(name="norm_output")(x))


def _sinusoids(length: int, width: int) -> jax.Array:
  """Returns [length, width]: sines and cosines of the places at frequencies from 1 to 1/10,000."""
  half = -(-width // 2)
  angles = jnp.arange(length)[:, None] * 1e4 ** -(jnp.arange(half) / max(half - 1, 1))
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :width]


class CompressionLearner:
  """Trains a model and a decoder on the task, once per seed; compiled once for all rates."""

  def __init__(self, model: LanguageModel, task: Compression, schedule: Schedule):
    """Sets the model, whose vocabulary holds the symbols, the task and the schedule."""
    self._task, self._schedule = task, schedule
    self._optimizer = schedule.optimizer()
    self._start, self._step, self._likeliest = _programs(
      cast(Hashable, model), rates.transformation(self._optimizer), task.length, task.symbols
    )

  def __call__(self, seed: int) -> Iterator[tuple[int, Any]]:
    """Yields (steps done, parameters) every `look_every` steps, and at the end."""
    schedule = self._schedule
    params, state = self._start(np.uint32(seed % 2**32))
    window = rates.RateWindow(self._optimizer.learning_rate)
    for step in range(1, schedule.steps + 1):
      place = schedule.place_in_pass(step - 1)
      rng = np.random.default_rng([self._task.seed, _TRAINING + seed, place])
      tokens, coming = self._task.draw(rng, schedule.batch_size), window.at(step, step - 1)
      params, state = self._step(params, state, tokens, coming)
      if step % schedule.look_every == 0 or step == schedule.steps:
        yield step, params

  def accuracy(self, params: Any, examples: int, split: str) -> float:
    """Returns the share of right symbols of examples of a split, 'heldout' or 'validation'."""
    rng = np.random.default_rng([self._task.seed, _SPLITS.index(split)])
    tokens = self._task.draw(rng, examples)
    right = [
      np.asarray(self._likeliest(params, part)) == part
      for part in np.array_split(tokens, -(-examples // _PASS))
    ]
    return float(np.concatenate(right).mean())


@functools.lru_cache(maxsize=2)
def _programs(
  model: Any, optimizer: optax.GradientTransformation, length: int, symbols: int
) -> tuple[Any, Any, Any]:
  """Returns the jitted start, step and likeliest symbols of a training, kept for other rates."""
  decoder = Decoder(model.width, symbols)

  def start(seed):
    first, second = jax.random.split(jax.random.key(seed))
    params = {
      "model": nn.unbox(model.init(first, jnp.zeros((1, 1), jnp.int32))["params"]),
      "decoder": decoder.init(second, jnp.zeros((1, model.width)), length)["params"],
    }
    return params, optimizer.init(params)

  def logits(params, tokens) -> jax.Array:
    found = model.apply({"params": params["model"]}, tokens, method="hidden")
    hidden, _ = cast(tuple[jax.Array, None], found)
    last = hidden[:, -1]
    return cast(jax.Array, decoder.apply({"params": params["decoder"]}, last, length))

  def step(params, state, tokens, coming):
    def loss(params):
      losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, tokens), tokens)
      return losses.mean()

    with rates.given(coming):
      updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  def likeliest(params, tokens):
    return jnp.argmax(logits(params, tokens), axis=-1)

  return jax.jit(start), jax.jit(step, donate_argnums=(0, 1)), jax.jit(likeliest)
