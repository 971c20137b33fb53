"""Small instances of every model of the zoo."""

import flax.linen as nn
import jax

from models.backbone import Backbone
from models.griffin import griffin
from models.hawk import hawk
from models.transformer import transformer

WINDOW = 8
VOCAB_SIZE = 61


def build(name: str, depth: int = 5, **options):
  """A model narrow enough for a test, with a remainder after the repeats of Griffin's pattern."""
  backbone = Backbone(vocab_size=VOCAB_SIZE, width=32, depth=depth, **options)
  if name == "griffin":
    return griffin(backbone, rnn_width=48, heads=2, window=WINDOW, gate_blocks=4)
  if name == "hawk":
    return hawk(backbone, rnn_width=48, gate_blocks=4)
  return transformer(backbone, heads=2)


def initialize(model, seed: int = 0):
  """Parameters without their logical axes."""
  tokens = jax.numpy.zeros((1, 1), jax.numpy.int32)
  return nn.unbox(jax.jit(model.init)(jax.random.key(seed), tokens)["params"])
