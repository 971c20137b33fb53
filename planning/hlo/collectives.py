"""Lists the collectives of a compiled program, with their mesh axes and the bytes sent."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from planning.hlo import text

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# TPUs fuse an all-reduce with the slice that each device keeps: a reduce-scatter.
_SCATTERING = "all-reduce-scatter"
# Further mentions of an asynchronous collective on TPUs: the fusions that it runs beside, and its
# end.
_GOES_ON, _ENDS = "async_collective_fusion", "async-collective-done"


class Collective(NamedTuple):
  """One collective operation.

  Attributes:
    kind: such as 'all-reduce'.
    arrays: (type, shape) of each array of its result.
    times: how often it runs, including loop iterations.
    axes: names of the mesh axes that it goes along; empty without a mesh.
    group: the devices of its first group, by their index in the mesh.
    sent: bytes that each device sends over all runs, by the algorithm that sends the least (a
      ring).
  """

  kind: str
  arrays: tuple[text.Array, ...]
  times: int
  axes: tuple[str, ...]
  group: tuple[int, ...]
  sent: float

  @property
  def members(self) -> int:
    """Number of devices in a group."""
    return len(self.group)


def collectives(
  program: text.HloProgram | str, mesh: Mapping[str, int] | None = None
) -> list[Collective]:
  """Lists the collectives of a compiled program in program order.

  Args:
    program: the program, parsed or as text.
    mesh: sizes of the mesh axes in the order of the program's devices.
  """
  program = text.HloProgram(program) if isinstance(program, str) else program
  found = []
  ends = {
    called
    for operations in program.computations.values()
    for operation in operations.values()
    if operation.name.startswith(_ENDS)
    for called in operation.called()
  }
  for name, times in program.runs.items():
    if name in ends or name.startswith(_GOES_ON):
      continue
    found += in_computation(program, name, times, mesh)
  return found


def in_computation(
  program: text.HloProgram, name: str, times: int = 1, mesh: Mapping[str, int] | None = None
) -> list[Collective]:
  """Lists the collectives of one computation, without those of computations that it calls.

  Those that its custom calls hand to a SparseCore are its own.

  Args:
    program: the program.
    name: the computation.
    times: how often it runs.
    mesh: see `collectives`.
  """
  found = []
  for operation in program.computations[name].values():
    if collective := collective_of(program, name, operation, times, mesh):
      found.append(collective)
    if operation.kind == "custom-call":
      for inner in operation.offloaded:
        found += in_computation(program, inner, times, mesh)
  return found


def collective_of(
  program: text.HloProgram,
  name: str,
  operation: text.Operation,
  times: int = 1,
  mesh: Mapping[str, int] | None = None,
) -> Collective | None:
  """Describes an operation of computation `name` as a collective; None if it is none.

  Args:
    program, name, times, mesh: see `in_computation`.
    operation: the operation.
  """
  kind = operation.kind.removesuffix("-start")
  if kind not in _KINDS:
    return None
  result = operation.result
  if name.startswith(_SCATTERING):
    kind = "reduce-scatter"
    result = next(o.result for o in program.computations[name].values() if o.is_root)
  group = _group(operation.rest)
  # An asynchronous one has arguments before its results, and synchronization words; not a sum.
  results = [(dtype, shape) for dtype, shape in text.arrays(result) if shape]
  if operation.kind.endswith("-start") and kind != "all-reduce" and len(results) > 1:
    results = results[len(results) // 2 :]
  whole = sum(text.size(f"{dtype}[{','.join(map(str, shape))}]") for dtype, shape in results)
  sent = times * whole * _share_sent(kind, len(group))
  axes = _axes(group, mesh) if mesh else ()
  return Collective(kind, tuple(results or text.arrays(result)), times, axes, group, sent)


def _share_sent(kind: str, members: int) -> float:
  """Returns the bytes that a device sends per byte of the result."""
  if kind == "collective-permute":
    return 1
  if kind == "reduce-scatter":
    return members - 1
  return (2 if kind == "all-reduce" else 1) * (members - 1) / members


def _group(attributes: str) -> tuple[int, ...]:
  """Returns the devices of the first group or the first pair."""
  if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
    return int(pairs[1]), int(pairs[2])
  if groups := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
    return tuple(int(n) for n in groups[1].split(","))
  if along := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
    return _group_of_mesh(along[1], along[2])
  listed = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
  )  # an iota that is reshaped and transposed
  if not listed:
    return (0,)
  shape, sizes = ([int(n) for n in listed[i].split(",")] for i in (1, 2))
  devices = np.arange(np.prod(sizes)).reshape(sizes)
  if listed[3]:
    devices = devices.transpose([int(n) for n in listed[3].split(",")])
  return tuple(int(n) for n in devices.reshape(shape)[0])


def _group_of_mesh(sizes: str, along: str) -> tuple[int, ...]:
  """The first group of `mesh['a'=2,'b'=8] {'a','b':(2)4}`: whole axes, or (before)size of a part of
  one.
  """
  mesh = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
  devices = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
  index: list[Any] = [np.array([0])] * len(mesh)
  for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along):
    part = int(size or mesh[name])
    stride = mesh[name] // (int(before or 1) * part)
    place = list(mesh).index(name)
    index[place] = np.add.outer(index[place], np.arange(part) * stride).reshape(-1)
  return tuple(int(n) for n in devices[np.ix_(*index)].reshape(-1))


def _axes(group: tuple[int, ...], mesh: Mapping[str, int]) -> tuple[str, ...]:
  places = np.array(np.unravel_index(group, tuple(mesh.values())))
  return tuple(
    name for name, along in zip(mesh, places, strict=True) if len(set(along.tolist())) > 1
  )
