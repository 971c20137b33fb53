"""The residual block that wraps every mixer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax

from layers.segments import Segments

State = Any  # a pytree of arrays whose shapes do not change from step to step


class Mixer(Protocol):
  """A temporal-mixing layer: the part in which architectures differ.

  A mixer is a flax module with the three methods below. It must be causal, keep segments apart, and
  continue from a state exactly as if the tokens before had been part of the call.
  """

  def __call__(
    self,
    x: jax.Array,
    segments: Segments,
    state: State | None = None,
    capacity: int | None = None,
  ) -> tuple[jax.Array, State | None]:
    """Mixes over time.

    Args:
      x: [B, T, D].
      segments: boundaries and positions of the T tokens.
      state: what `initial_state` or an earlier call returned; None starts from nothing.
      capacity: with state None: return a state with room for this many tokens, T included.

    Returns:
      [B, T, D], and the state after token T (None if neither state nor capacity was given).
    """

  def initial_state(self, batch_size: int, capacity: int) -> State:
    """The state before the first token, with room for `capacity` tokens where that matters."""

  def matmul_flops(self, width: int, length: int) -> float:
    """Floating-point operations of the matrix products per token of a row, forward."""


MixerFactory = Callable[..., Mixer]
ModuleFactory = Callable[..., nn.Module]


class ResidualBlock(nn.Module):
  """`x = x + mixer(norm(x))`, then `x = x + mlp(norm(x))` (section 2.1 of the Griffin paper).

  Attributes:
    mixer, mlp, norm: factories that take the module's `name`; without an MLP (None) the block ends with
      the mixer.
    capacity: handed to the mixer.
  """

  mixer: MixerFactory
  mlp: ModuleFactory | None
  norm: ModuleFactory
  capacity: int | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, segments: Segments, state: State | None = None
  ) -> tuple[jax.Array, State | None]:
    """Maps [B, T, D] to [B, T, D], with the mixer's state."""
    mixed, state = self.mixer(name="mixer")(
      self.norm(name="mixer_norm")(x), segments, state, self.capacity
    )
    x = x + mixed
    if self.mlp is None:
      return x, state
    return x + self.mlp(name="mlp")(self.norm(name="mlp_norm")(x)), state
