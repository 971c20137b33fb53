"""Small instances of every model of the zoo."""

import functools

import flax.linen as nn
import jax
import numpy as np

from models.backbone import Backbone
from models.griffin import griffin
from models.hawk import hawk
from models.transformer import transformer

WINDOW = 8
VOCAB_SIZE = 61


def build(name: str, depth: int = 5, **options):
  """A model narrow enough for a test, with a remainder after two repeats of Griffin's pattern.

  The pattern has each kind of block once: a second recurrent block only takes longer to compile.
  """
  backbone = Backbone(vocab_size=VOCAB_SIZE, width=32, depth=depth, **options)
  if name == "griffin":
    pattern = ("recurrent", "attention")
    return griffin(backbone, rnn_width=48, heads=2, window=WINDOW, gate_blocks=4, pattern=pattern)
  if name == "hawk":
    return hawk(backbone, rnn_width=48, gate_blocks=4)
  return transformer(backbone, heads=2)


def initialize(model, seed: int = 0):
  """Parameters without their logical axes."""
  tokens = jax.numpy.zeros((1, 1), jax.numpy.int32)
  return nn.unbox(jax.jit(model.init)(jax.random.key(seed), tokens)["params"])


@functools.partial(jax.jit, static_argnames="model")
def _apply(model, params, tokens):
  return model.apply({"params": params}, tokens)[0]


def logits(model, params, tokens, length: int = 64):
  """Returns logits [T, V] after each token; padded to `length`, so that one program serves all."""
  padded = np.zeros((1, length), np.int32)
  padded[0, : len(tokens)] = tokens
  return np.asarray(_apply(model, params, padded))[0, : len(tokens)]


def greedy(model, params, tokens, count, forbidden=(), eos_id=None, length: int = 64):
  """Generates `count` tokens greedily, or until the end, each from all tokens before it."""
  new = []
  for _ in range(count):
    last = logits(model, params, [*tokens, *new], length)[-1].copy()
    last[list(forbidden)] = -np.inf
    new.append(int(last.argmax()))
    if new[-1] == eos_id:
      return new[:-1]
  return new
