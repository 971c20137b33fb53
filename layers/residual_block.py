"""The residual block that wraps every mixer."""

from __future__ import annotations

import flax.linen as nn
import jax

from layers import mixer
from layers.mixer import MixerFactory, ModuleFactory, State
from layers.segments import Segments


class ResidualBlock(nn.Module):
  """`x = x + mixer(norm(x))`, then `x = x + mlp(norm(x))` (section 2.1 of the Griffin paper).

  Attributes:
    mixer, mlp, norm: factories that take the module's `name`; without an MLP (None) the block ends
      with the mixer.
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
    """Maps [B, T, D] to [B, T, D], with the mixer's state.

    Raises:
      MixerError: the mixer breaks its contract in a way that shows in shapes, or refuses a split.
    """
    mix = mixer.checked(self.mixer(name="mixer"))
    mixed, state = mix(self.norm(name="mixer_norm")(x), segments, state, self.capacity)
    x = x + mixed
    if self.mlp is None:
      return x, state
    return x + self.mlp(name="mlp")(self.norm(name="mlp_norm")(x)), state
