"""The model that the contract checks."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from base.equal_partial import EqualPartial
from contract.subject import Subject
from layers.hgrn2 import HGRN2
from layers.parameter import parameter
from models.backbone import Backbone
from models.hgrn2 import hgrn2
from models.hybrid import hybrid
from models.xlstm import xlstm

BACKBONE = Backbone(vocab_size=61, width=16, depth=3)
MODEL = hgrn2(BACKBONE, heads=2, chunk=8)


class Line(nn.Module):
  """Bounds on a line over the depth, of a slope per channel: no parameter has a row per block."""

  blocks: int
  channels: int
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self) -> jax.Array:
    slope = parameter(self, "slope", nn.initializers.ones, ("heads",), (self.channels,))
    return jax.nn.sigmoid(slope) * jnp.arange(self.blocks)[:, None] / self.blocks


class OnALine(HGRN2):
  def depth_table(self):
    return functools.partial(Line, channels=self.heads * self.key_dim)


def table_without_remainder(model):
  """The parameters of the table over the depth, of a model that takes them."""
  subject = Subject(model)
  subject.params = zeros(subject.model)  # Random ones take a second to compile.
  shorter, params = subject.without_remainder()
  jax.eval_shape(shorter.apply, {"params": params}, np.zeros((1, 5), np.int32))
  return jax.tree.map(np.shape, params["stack"]["depth_table"])


def zeros(model):
  tokens = np.zeros((1, 1), np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), nn.unbox(shapes))


def test_a_table_over_the_depth_loses_the_rows_of_the_remainder():
  mixers = {"a": lambda: MODEL, "b": lambda: xlstm(BACKBONE, heads=2)}
  model = hybrid(BACKBONE, mixers=mixers, pattern=["a", "b"])
  assert table_without_remainder(model) == {"lower_bounds": (2, 16)}


def test_a_table_of_parameters_without_rows_stays_whole():
  mixer = EqualPartial(OnALine, **MODEL.pattern[0].keywords)
  assert table_without_remainder(MODEL.clone(pattern=(mixer,))) == {"slope": (16,)}
