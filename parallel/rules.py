"""Sharding rules: maps the logical axes of arrays to mesh axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
from jax.sharding import PartitionSpec

from base.ranges import Share
from base.wording import near, percent_above
from parallel.mesh import FLAGS

MeshAxes = str | tuple[str, ...] | None

# Section 4.1 of the Griffin paper. The single key/value head of MQA is replicated.
MEGATRON: Mapping[str, MeshAxes] = {
  # activations
  "batch": "data",
  "time": "seq",
  # parameters and activations
  "vocab": "model",
  "mlp": "model",
  "heads": "model",
  "rnn": "model",
  "rnn_blocks": "model",
  "kv_heads": None,
  "embed": None,
  # parameters
  "layers": None,
  "conv": None,
  "block_in": None,
  "block_out": None,
  "lora": None,
  "state": None,
}
# The options that set an axis's size, for errors.
_FLAGS = {
  "rnn_blocks": "gate_blocks (--gin.griffin.griffin.gate_blocks and the like)",
  "vocab": "--gin.VOCAB_MULTIPLE",
  "rnn": "--gin.RNN_WIDTH",
  "mlp": "--gin.WIDTH",
  "heads": "--gin.HEADS",
  "batch": "--gin.BATCH_SIZE",
  "time": "--gin.SEQUENCE_LENGTH",
}
# The unit of an axis, for errors.
_COUNTED = {
  "rnn_blocks": "gate blocks",
  "vocab": "rows of the vocabulary",
  "rnn": "recurrent channels",
  "mlp": "channels of the MLP",
  "heads": "channels of the heads",
  "batch": "rows at a time",
  "time": "tokens of a row",
}


class ParameterLike(Protocol):
  """The attributes of a parameter that rules need: see `models.accounting.Parameter`."""

  @property
  def path(self) -> str: ...

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def axes(self) -> tuple[str | None, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...

  @property
  def bytes(self) -> int: ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rules:
  """The table of rules, and limits of replication.

  Attributes:
    table: maps a logical axis to a mesh axis, to several, or to None to replicate it.
    replicated: logical axes of parameters that may be replicated over the model axis, whatever
      their share of the bytes.
    max_replicated: largest share of the bytes of all other parameters that may be replicated over
      an axis that should split parameters.
  """

  table: Mapping[str, MeshAxes] = dataclasses.field(default_factory=lambda: dict(MEGATRON))
  replicated: tuple[str, ...] = ("kv_heads", "lora")
  max_replicated: Share = 0.01

  def __post_init__(self):
    # The axes of the default may be missing from another table.
    known = {**MEGATRON, **self.table}
    for axis in self.replicated:
      if axis not in known:
        raise ValueError(f"replicated has {axis!r}, and no rule is about it{near(axis, known)}")

  def mesh_axes(self, axis: str | None, name: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes with more than one device that a logical axis is split over.

    Args:
      axis: a logical axis; None is never split.
      name: the array's name in errors.
      sizes: sizes of the mesh axes.

    Raises:
      ValueError: the table lacks the axis, or names a mesh axis that does not exist.
    """
    if axis is None:
      return ()
    if axis not in self.table:
      raise ValueError(
        f"{name}: no rule for its logical axis {axis!r}; there are rules for "
        f"{', '.join(self.table)}. Add it to rules.Rules.table, with None to replicate it."
      )
    found = self.table[axis]
    names = (found,) if isinstance(found, str) else tuple(found or ())
    for mesh_axis in names:
      if mesh_axis not in sizes:
        raise ValueError(
          f"{name}: the rule {axis!r} -> {mesh_axis!r} has an unknown mesh axis; the mesh has "
          f"{', '.join(sizes)}. Correct rules.Rules.table."
        )
    return tuple(mesh_axis for mesh_axis in names if sizes[mesh_axis] > 1)

  def spec(
    self,
    axes: Iterable[str | None],
    shape: tuple[int, ...],
    sizes: Mapping[str, int],
    name: str = "array",
  ) -> PartitionSpec:
    """Returns the sharding of an array.

    Args:
      axes: one logical axis per dimension.
      shape: the array's shape; dimensions of 1 are not split.
      sizes: sizes of the mesh axes.
      name: the array's name in errors.

    Raises:
      ValueError: an axis is unknown or does not divide, or two dimensions use the same mesh axis.
    """
    axes = tuple(axes)
    if len(axes) != len(shape):
      raise ValueError(f"{name} has shape {shape}, and {len(axes)} logical axes: {axes}.")
    owner: dict[str, str | None] = {}
    entries: list[MeshAxes] = []
    for axis, size in zip(axes, shape, strict=True):
      names = self.mesh_axes(axis, name, sizes) if size > 1 else ()
      shards = math.prod(sizes[n] for n in names)
      if size % shards:
        raise ValueError(_does_not_divide(name, axis, size, names, shards))
      for mesh_axis in names:
        if mesh_axis in owner:
          raise ValueError(
            f"{name}: logical axes {owner[mesh_axis]!r} and {axis!r} are both split over mesh axis "
            f"{mesh_axis!r}, which can split only one dimension of an array. "
            "Set one of them to None in rules.Rules.table."
          )
        owner[mesh_axis] = axis
      entries.append(names[0] if len(names) == 1 else names or None)
    return PartitionSpec(*entries)


def _does_not_divide(name, axis, size, names, shards) -> str:
  mesh_axes = " x ".join(names)
  divisors = [str(d) for d in range(1, min(size, shards) + 1) if size % d == 0]
  option = _FLAGS.get(axis, axis)
  whole = " (the gates need no communication only if a shard holds whole blocks)"
  mesh_flag = FLAGS.get(names[-1], f"the mesh axis {names[-1]}")
  return (
    f"{name}: {size} {_COUNTED.get(axis, axis)} cannot be split evenly over {mesh_axes}={shards}"
    f"{whole if axis == 'rnn_blocks' else ''}. "
    f"Make {option} a multiple of {shards}, or {mesh_flag} a divisor of {size}: "
    f"{', '.join(divisors)}."
  )


def check_replication(
  rules: Rules,
  parameters: Iterable[ParameterLike],
  specs: Mapping[str, PartitionSpec],
  sizes: Mapping[str, int],
  axes: Iterable[str],
) -> None:
  """Raises ValueError if too many bytes of parameters are replicated over an axis.

  Args:
    rules: the rules, with the limit.
    parameters: the model's parameters.
    specs: shardings by parameter path.
    sizes: sizes of the mesh axes.
    axes: mesh axes that should split parameters: model, and data in ZeRO stage 3.
  """
  counted = [p for p in parameters if not set(p.axes) & set(rules.replicated)]
  total = sum(p.bytes for p in counted)
  for axis in axes:
    if sizes[axis] == 1 or not total:
      continue
    whole = [p for p in counted if axis not in named_axes(specs[p.path])]
    share = sum(p.bytes for p in whole) / total
    if share > rules.max_replicated:
      largest = max(whole, key=lambda p: p.bytes)
      raise ValueError(
        f"{percent_above(share, rules.max_replicated)} of the parameter bytes are replicated over "
        f"mesh axis {axis}={sizes[axis]} (at most {100 * rules.max_replicated:g}%); the largest is "
        f"{largest.path}, "
        f"{' x '.join(map(str, largest.axes))}. Split an axis in rules.Rules.table, or allow "
        "more: --gin.sharding_plan.Parallelism.rules='@parallel.rules.Rules()' "
        f"--gin.parallel.rules.Rules.max_replicated={math.ceil(share * 100) / 100}."
      )


def named_axes(spec: Iterable[MeshAxes]) -> tuple[str, ...]:
  """Lists the mesh axes in a sharding, in the order of the dimensions."""
  names: list[str] = []
  for entry in spec:
    names += [entry] if isinstance(entry, str) else list(entry or ())
  return tuple(names)
