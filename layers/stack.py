"""A repeated pattern of residual blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers.residual_block import MixerFactory, ModuleFactory, ResidualBlock, State
from layers.segments import Segments

REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
  "none": None,  # save what automatic differentiation wants
  "full": jax.checkpoint_policies.nothing_saveable,  # save only each block's input
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # and the weights' products
}


class Group(nn.Module):
  """One repetition of the pattern.

  Attributes:
    pattern, mlp, norm, remat: as in `Stack`.
    capacity: as a mixer's; a field, because it is a number that shapes depend on.
  """

  pattern: tuple[MixerFactory, ...]
  mlp: ModuleFactory
  norm: ModuleFactory
  remat: str = "none"
  capacity: int | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, state: tuple[State, ...] | None, segments: Segments
  ) -> tuple[jax.Array, tuple[State, ...] | None]:
    """Maps [B, T, D] to [B, T, D], with one state per block."""
    block = ResidualBlock
    if self.remat != "none":
      block = nn.remat(block, policy=REMAT_POLICIES[self.remat])
    states = []
    for index, mixer in enumerate(self.pattern):
      before = None if state is None else state[index]
      x, after = block(mixer, self.mlp, self.norm, self.capacity, name=f"block_{index}")(
        x, segments, before
      )
      states.append(after)
    return x, None if states[0] is None else tuple(states)


class Stack(nn.Module):
  """`depth` blocks in a repeating pattern, cut to depth.

  The repetitions run under one scan, so that the time to compile does not grow with the depth; what
  is left over (26 = 8 * 3 + 2) runs after them.

  Attributes:
    pattern: the mixers of one repetition.
    depth: number of blocks.
    mlp, norm: factories of the other parts of a block.
    remat: a name from REMAT_POLICIES.
    unroll: repetitions per scan iteration; larger is faster to run and slower to compile.
  """

  pattern: tuple[MixerFactory, ...]
  depth: int
  mlp: ModuleFactory
  norm: ModuleFactory
  remat: str = "none"
  unroll: int = 1

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segments: Segments,
    state: dict[str, State] | None = None,
    capacity: int | None = None,
  ) -> tuple[jax.Array, dict[str, State] | None]:
    """Maps [B, T, D] to [B, T, D]; see `layers.residual_block.Mixer` for state and capacity."""
    if self.remat not in REMAT_POLICIES:
      raise ValueError(
        f"remat policy {self.remat!r} is unknown: use one of {list(REMAT_POLICIES)}."
      )
    options = {"mlp": self.mlp, "norm": self.norm, "remat": self.remat, "capacity": capacity}
    repeats, rest = divmod(self.depth, len(self.pattern))
    after = {}
    if repeats:
      scanned = nn.scan(
        Group,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        out_axes=0,
        length=repeats,
        unroll=min(self.unroll, repeats),
        metadata_params={nn.PARTITION_NAME: "layers"},
      )
      x, after["repeats"] = scanned(pattern=self.pattern, name="repeats", **options)(
        x, state and state["repeats"], segments
      )
    if rest:
      x, after["remainder"] = Group(pattern=self.pattern[:rest], name="remainder", **options)(
        x, state and state["remainder"], segments
      )
    return x, None if state is None and capacity is None else after

  def initial_state(self, batch_size: int, capacity: int) -> dict[str, State]:
    """The states of all blocks before the first token; the repeats' have a leading axis."""
    states = tuple(mixer(parent=None).initial_state(batch_size, capacity) for mixer in self.pattern)
    repeats, rest = divmod(self.depth, len(self.pattern))
    result = {}
    if repeats:
      result["repeats"] = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (repeats, *leaf.shape)), states
      )
    if rest:
      result["remainder"] = states[:rest]
    return result

  def mixers(self) -> list[Any]:
    """The unbound mixer of every block, in order."""
    return [self.pattern[index % len(self.pattern)](parent=None) for index in range(self.depth)]
