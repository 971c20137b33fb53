"""A repeated pattern of residual blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers import remat
from layers.mixer import MixerFactory, ModuleFactory, State
from layers.residual_block import ResidualBlock
from layers.segments import Segments
from parallel import sequence
from parallel.mesh import FLAGS

# The name of the first table over the depth among a stack's parameters; others are numbered.
DEPTH_TABLE = "depth_table"


class Group(nn.Module):
  """One repetition of the pattern.

  Attributes:
    pattern, mlp, norm, remat: as in `Stack`.
    capacity: as a mixer's; a field, because it is a number that shapes depend on.
  """

  pattern: tuple[MixerFactory, ...]
  mlp: ModuleFactory | None
  norm: ModuleFactory
  remat: str = "none"
  capacity: int | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    inputs: tuple[tuple[State, ...] | None, tuple[jax.Array | None, ...]],
    segments: Segments,
  ) -> tuple[jax.Array, tuple[State, ...] | None]:
    """Maps [B, T, D] to [B, T, D], with one state per block.

    `inputs` are the states before, and each block's row of a table over the depth, if it has one.
    """
    state, rows = inputs
    block = ResidualBlock
    policy = remat.policy(self.remat)
    if policy is not None:
      block = nn.remat(block, policy=policy)
    states = []
    for index, mixer in enumerate(self.pattern):
      before = None if state is None else state[index]
      x, after = block(mixer, self.mlp, self.norm, self.capacity, name=f"block_{index}")(
        x, segments, before, rows[index]
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
    remat: a name from `layers.remat.POLICIES`.
    unroll: repetitions per scan iteration; larger is faster to run and slower to compile.
    scan: False runs the repetitions without a scan, each with parameters and state of its own,
      which `unstack` makes of the scanned ones.
  """

  pattern: tuple[MixerFactory, ...]
  depth: int
  mlp: ModuleFactory | None
  norm: ModuleFactory
  remat: str = "none"
  unroll: int = 1
  scan: bool = True

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segments: Segments,
    state: dict[str, State] | None = None,
    capacity: int | None = None,
  ) -> tuple[jax.Array, dict[str, State] | None]:
    """Maps [B, T, D] to [B, T, D]; see `layers.mixer.Mixer` for state and capacity."""
    if capacity is not None and sequence.is_split():
      raise ValueError(
        "a decode state cannot be made where mesh axes split the tokens of a row. "
        f"Prefill with {FLAGS['seq']}=1."
      )
    options = {"mlp": self.mlp, "norm": self.norm, "remat": self.remat, "capacity": capacity}
    after, start, tables = {}, 0, self._depth_tables()
    for name, pattern, repeats in self._groups():
      group = self._scanned(repeats) if repeats else Group
      rows = tuple(
        self._rows(tables, start + index, len(pattern), repeats) for index in range(len(pattern))
      )
      x, after[name] = group(pattern=pattern, name=name, **options)(
        x, (None if state is None else state[name], rows), segments
      )
      start += max(repeats, 1) * len(pattern)
    return x, None if state is None and capacity is None else after

  def _depth_tables(self) -> dict[MixerFactory, jax.Array]:
    """The tables over the depth, [blocks of the kind, ...], of the kinds of mixers that have one.

    They are parameters beside those of the blocks, because each row depends on all rows.
    """
    tables = {}
    for kind in dict.fromkeys(self.pattern):
      table = getattr(kind(parent=None), "depth_table", None)
      if table is not None:
        name = f"{DEPTH_TABLE}_{len(tables)}" if tables else DEPTH_TABLE
        tables[kind] = table()(self._number(kind, self.depth), name=name)()
    return tables

  def _number(self, kind: MixerFactory, end: int) -> int:
    """Counts the blocks with a kind of mixer before a block."""
    return sum(self.pattern[index % len(self.pattern)] == kind for index in range(end))

  def _rows(
    self, tables: dict[MixerFactory, jax.Array], block: int, step: int, repeats: int
  ) -> jax.Array | None:
    """The row of a block, or those of all blocks in its place of a scanned pattern; None without.

    Args:
      tables: see `_depth_tables`.
      block: the first such block.
      step: blocks of the pattern.
      repeats: repetitions of a scan, 0 for none.
    """
    kind = self.pattern[block % len(self.pattern)]
    if kind not in tables:
      return None
    rows = [self._number(kind, block + index * step) for index in range(max(repeats, 1))]
    return tables[kind][jnp.asarray(rows)] if repeats else tables[kind][rows[0]]

  def _groups(self) -> list[tuple[str, tuple[MixerFactory, ...], int]]:
    """Name, pattern and number of scanned repetitions (0: no scan) of each part, in order."""
    repeats, rest = divmod(self.depth, len(self.pattern))
    groups = []
    if repeats and self.scan:
      groups.append(("repeats", self.pattern, repeats))
    elif repeats:
      groups += [(_name_of_repeat(index), self.pattern, 0) for index in range(repeats)]
    if rest:
      groups.append(("remainder", self.pattern[:rest], 0))
    return groups

  def _scanned(self, repeats: int) -> Callable[..., nn.Module]:
    return nn.scan(
      Group,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      # flax annotates no axes: its default, 0, is taken for their type.
      in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
      out_axes=0,
      length=repeats,
      unroll=min(self.unroll, repeats),
      # The block gives nothing that all repetitions share. The check traces it once more, twice
      # under a gradient: a fifth of the time to trace a step. The initial parameters of a seed
      # depend on it, as it counts the random keys that are drawn.
      check_constancy_invariants=self.is_initializing(),
      metadata_params={nn.PARTITION_NAME: "layers"},
    )

  def initial_state(self, batch_size: int, capacity: int) -> dict[str, State]:
    """The states of all blocks before the first token; the scanned ones have a leading axis."""
    result = {}
    for name, pattern, repeats in self._groups():
      states = tuple(mixer(parent=None).initial_state(batch_size, capacity) for mixer in pattern)
      if repeats:
        states = jax.tree.map(
          lambda leaf, n=repeats: jnp.broadcast_to(leaf, (n, *leaf.shape)), states
        )
      result[name] = states
    return result

  def mixers(self) -> list[Any]:
    """The unbound mixer of every block, in order."""
    if not self.pattern:
      raise ValueError("pattern is empty. Give at least one mixer, such as ('recurrent',).")
    return [self.pattern[index % len(self.pattern)](parent=None) for index in range(self.depth)]


def unstack(stacked: dict[str, Any]) -> dict[str, Any]:
  """Cuts the parameters, or the states, of a scanned stack into those of one with `scan=False`."""
  cut = {name: group for name, group in stacked.items() if name != "repeats"}
  repeats = stacked.get("repeats")
  count = jax.tree.leaves(repeats)[0].shape[0] if repeats is not None else 0
  for index in range(count):
    cut[_name_of_repeat(index)] = jax.tree.map(lambda leaf, i=index: leaf[i], repeats)
  return cut


def _name_of_repeat(index: int) -> str:
  return f"repeat_{index}"
