"""What a mixer is, and what shows in shapes alone when a layer is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np

from base.errors import UserError
from base.wording import near
from layers.segments import Segments
from parallel import shards
from parallel.mesh import FLAGS

State = Any  # a pytree of arrays whose shapes do not change from step to step


class MixerError(UserError, ValueError):
  """A mixer does not keep to `Mixer`; the message names it, what it lacks, and the remedy."""


class Mixer(Protocol):
  """A temporal-mixing layer: the part in which architectures differ.

  A mixer is a flax module with the first three methods below and fields `dtype` and `param_dtype`.
  It must be causal, keep segments apart, and continue from a state exactly as if the tokens before
  had been part of the call. `contract` tests all of that, and what these optional attributes claim:

    constant_state: bool, whether the state's size does not depend on its capacity; False without.
    differentiable_state: bool, whether gradients pass from a state to the call that made it; True
      without. Training in chunks of time needs that and a constant state.
    learned_state: bool, a field. With True the state at a document's start is a parameter, as
      `layers.initial_state` has it; `initial_state` stays what it is, and position 0 starts there.
    input_axis: the logical axis of its first maps' results, such as 'rnn'. Where a mesh splits that
      axis, every device reads all of x, and the block around the mixer sums the gradient of x over
      them. None, the default: the mixer does so itself.
    depth_table: a method that returns a factory of a module, from a number of blocks and a name.
      The module's call returns an array with a row per block of this kind, such as bounds that grow
      with depth: rows that depend on each other. Each block's call gets its row as argument five.
    unsplit_axes: tuple of logical axes that may not be split over devices, such as 'time'; none
      without.
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
      [B, T, D], and the state after token T. Where neither state nor capacity was given the block
      drops the state, which may be anything.
    """
    ...

  def initial_state(self, batch_size: int, capacity: int) -> State:
    """The state before the first token, with room for `capacity` tokens where that matters."""
    ...

  def matmul_flops(self, width: int, length: int) -> float:
    """Floating-point operations of the matrix products per token of a row, forward."""
    ...

  def clone(self, *, parent: None) -> Mixer:
    """The same mixer outside of any module; every flax module has this method."""
    ...


MixerFactory = Callable[..., Mixer]
ModuleFactory = Callable[..., nn.Module]


def checked(mixer: Mixer) -> Callable[..., tuple[jax.Array, State | None]]:
  """A mixer's `__call__`, with its methods, splits, result and state checked while it is traced.

  Raises:
    MixerError: here or in the call: the mixer breaks its contract in a way that shows in shapes,
      is split over devices along an axis that it refuses, or names an unknown `input_axis`.
  """
  _check_methods(mixer)
  _check_splits(mixer)

  def call(x, segments, state=None, capacity=None, *row):
    mixed, after = _check_result(mixer, mixer(x, segments, state, capacity, *row), x)
    if state is None and capacity is None:
      return mixed, None
    _check_state(mixer, after, state, capacity, x.shape[0])
    return mixed, after

  return call


def _called(mixer: Mixer) -> str:
  kind = type(mixer)
  return f"the mixer {kind.__module__}.{kind.__qualname__}"


_METHODS = {"initial_state": "batch_size, capacity", "matmul_flops": "width, length"}


def _check_methods(mixer: Mixer) -> None:
  for method, arguments in _METHODS.items():
    if not callable(getattr(mixer, method, None)):
      raise MixerError(
        f"{_called(mixer)} has no method {method}({arguments}): add it, as "
        "layers.mixer.Mixer describes."
      )


def _check_splits(mixer: Mixer) -> None:
  axis = getattr(mixer, "input_axis", None)
  if axis is not None and not shards.has_rule(axis):
    raise MixerError(
      f"{_called(mixer)} has input_axis={axis!r}, and no rule is about such an axis. Name the "
      "logical axis of its first maps' results, or add it to rules.Rules.table."
    )
  for axis in _unsplit(mixer):
    if not shards.has_rule(axis):
      raise MixerError(
        f"{_called(mixer)} has unsplit_axes with {axis!r}, and no rule is about such an axis"
        f"{near(axis, shards.ruled_axes())}"
      )
    if shards.count(axis) > 1:
      names = shards.mesh_axes(axis)
      raise MixerError(
        f"{_called(mixer)} cannot run with its axis {axis!r} split over devices, as mesh axis "
        f"{'+'.join(names)} does. Set {FLAGS.get(names[0], names[0])}=1."
      )


def _unsplit(mixer: Mixer) -> tuple[str, ...]:
  axes = getattr(mixer, "unsplit_axes", ())
  if isinstance(axes, str):  # Its letters would be taken for axes.
    raise MixerError(
      f"{_called(mixer)} has unsplit_axes={axes!r}, which is no tuple. Write ({axes!r},)."
    )
  return tuple(axes)


def _check_result(mixer: Mixer, result: Any, x: jax.Array) -> tuple[jax.Array, State | None]:
  if not isinstance(result, tuple) or len(result) != 2:
    raise MixerError(
      f"{_called(mixer)} returns a {type(result).__name__}: it must return the pair (y, state)."
    )
  shape = getattr(result[0], "shape", None)
  if shape != x.shape:
    raise MixerError(
      f"{_called(mixer)} maps x of shape {x.shape} to {shape or type(result[0]).__name__}: it must "
      "return an array of x's shape [B, T, D]."
    )
  return result


def _check_state(
  mixer: Mixer, after: State | None, before: State | None, capacity: int | None, batch: int
) -> None:
  """Compares a state with the one before, or with the initial one where there was none."""
  what = "the state it was given"
  if before is None and capacity is not None:
    what = f"initial_state(batch_size={batch}, capacity={capacity})"
    if shards.is_per_device():
      return  # its initial state is that of a device that has everything
    before = jax.eval_shape(lambda: mixer.clone(parent=None).initial_state(batch, capacity))
  expected, found = (
    {
      jax.tree_util.keystr(path): f"{np.result_type(leaf)}{list(np.shape(leaf))}"
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    for tree in (before, after)
  )
  if jax.tree.structure(before) == jax.tree.structure(after) and expected == found:
    return
  paths = [*expected, *(path for path in found if path not in expected)]
  where = next((path for path in paths if expected.get(path) != found.get(path)), None)
  difference = (
    "another structure"
    if where is None
    else f"{found.get(where, 'nothing')} at {where or 'its root'} instead of "
    f"{expected.get(where, 'nothing')}"
  )
  raise MixerError(
    f"{_called(mixer)} returns a state that differs from {what}: {difference}. A state keeps its "
    "structure, shapes and types from step to step."
  )
