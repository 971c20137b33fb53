"""The recurrent temporal-mixing block of Hawk and Griffin."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import initial_state
from layers.activations import gated
from layers.conv1d import CausalConv1D
from layers.dtypes import dtypes_of
from layers.linear import Linear
from layers.mixer import ModuleFactory
from layers.rg_lru import RGLRU
from layers.segments import Segments


class RecurrentState(NamedTuple):
  """What the block remembers of the tokens before: its size does not depend on their number.

  Attributes:
    history: [B, conv_width - 1, R] the convolution's last inputs, oldest first.
    h: [B, R] float32 state of the recurrence; None where time is split.
  """

  history: jax.Array
  h: jax.Array | None


class RecurrentBlock(nn.Module):
  """`out(gelu(y(x)) * recurrence(conv(x(x))))`, section 2.3 of the Griffin paper.

  Attributes:
    rnn_width: channels R of the recurrence.
    gate_blocks: diagonal blocks of the gates' weights.
    conv_width: tokens that one output of the convolution sees.
    use_bias: biases on the three linear maps (RecurrentGemma has them).
    output_scale: initialisation scale of the output map.
    activation: of the branch y; a name from `layers.activations.ACTIVATIONS`.
    recurrence: factory of the recurrence, a module like `RGLRU`.
    learned_state: whether the recurrence begins documents with a state that is learned; the
      convolution begins with nothing.
    implementation: a recurrence kernel's name; None picks by backend.
  """

  rnn_width: int
  gate_blocks: int
  conv_width: int = 4
  use_bias: bool = False
  output_scale: float = 1.0
  activation: str = "gelu_tanh"
  recurrence: ModuleFactory = partial(RGLRU, name="rg_lru")
  learned_state: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  implementation: str | None = None

  # The state is the last inputs of the convolution and one vector.
  constant_state = True
  input_axis = "rnn"

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segments: Segments,
    state: RecurrentState | None = None,
    capacity: int | None = None,
  ) -> tuple[jax.Array, RecurrentState | None]:
    """Mixes [B, T, D] over time; see `layers.mixer` for the contract of a mixer."""
    dtypes = dtypes_of(self)
    linear = {"use_bias": self.use_bias, **dtypes}
    history, h0 = state if state is not None else (None, None)
    y = Linear(self.rnn_width, ("embed", "rnn"), name="linear_y", **linear)(x)
    u = Linear(self.rnn_width, ("embed", "rnn"), name="linear_x", **linear)(x)
    u, history = CausalConv1D(self.conv_width, name="conv1d", **dtypes)(
      u, segments.positions, history
    )
    options = {}
    if self.learned_state:
      initial_state.check_field(self.recurrence(self.gate_blocks, parent=None))
      options["learned_state"] = True
    recurrence = self.recurrence(
      self.gate_blocks, implementation=self.implementation, **options, **dtypes
    )
    h, h_last = recurrence(u, segments, h0)
    out = Linear(x.shape[-1], ("rnn", "embed"), self.output_scale, name="linear_out", **linear)
    return out(gated(self.activation)(y, h)), RecurrentState(history, h_last)

  def initial_state(self, batch_size: int, capacity: int) -> RecurrentState:
    """The state before the first token; `capacity` does not matter here."""
    del capacity
    return RecurrentState(
      history=jnp.zeros((batch_size, self.conv_width - 1, self.rnn_width), self.dtype),
      h=jnp.zeros((batch_size, self.rnn_width), jnp.float32),
    )

  def matmul_flops(self, width: int, length: int) -> int:
    """Floating-point operations of the matrix products per token, forward."""
    del length
    gates = self.recurrence(self.gate_blocks, parent=None).matmul_flops(self.rnn_width)
    return 2 * 3 * width * self.rnn_width + gates
