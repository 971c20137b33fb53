"""The residual block that wraps every mixer."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from layers import mixer
from layers.mixer import MixerFactory, ModuleFactory, State
from layers.segments import Segments
from parallel import shards


class ResidualBlock(nn.Module):
  """`x = x + mixer(norm(x))`, then `x = x + mlp(norm(x))` (section 2.1 of the Griffin paper).

  Attributes:
    mixer, mlp, norm: factories that take the module's `name`; without an MLP (None) the block ends
      with the mixer. Mixer and MLP may name their `input_axis`; see `layers.mixer.Mixer`.
    capacity: handed to the mixer.
  """

  mixer: MixerFactory
  mlp: ModuleFactory | None
  norm: ModuleFactory
  capacity: int | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segments: Segments,
    state: State | None = None,
    row: jax.Array | None = None,
  ) -> tuple[jax.Array, State | None]:
    """Maps [B, T, D] to [B, T, D], with the mixer's state; `row` is its own of a table over depth.

    Raises:
      MixerError: the mixer breaks its contract in a way that shows in shapes, or refuses a split.
    """
    mix = self.mixer(name="mixer")
    read = _copied(self.norm(name="mixer_norm")(x), mix)
    # In a profile, a block is known by the class of its mixer.
    with jax.named_scope(type(mix).__name__):
      rows = () if row is None else (row,)
      mixed, state = mixer.checked(mix)(read, segments, state, self.capacity, *rows)
    x = x + mixed
    if self.mlp is None:
      return x, state
    mlp = self.mlp(name="mlp")
    return x + mlp(_copied(self.norm(name="mlp_norm")(x), mlp)), state


def _copied(x: jax.Array, module: Any) -> jax.Array:
  """Copies x to the shards of a module's input axis, which sums its gradient over them."""
  axis = getattr(module, "input_axis", None)
  return x if axis is None else shards.copy_to_tensor_parallel(x, axis)
