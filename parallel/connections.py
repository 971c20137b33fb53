"""The connections between hosts whose CPUs compute together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parallel import processes


def connect(mesh: Mesh) -> None:
  """Has every group of devices that later programs may sum over meet once; for several processes on
  CPUs.

  Gloo connects a group at its first exchange, and fails if one host comes there 30 s after another,
  as where it compiles more slowly or reads a slower disk. Once connected, hosts wait for each other
  as long as they live. Accelerators need none of this.
  """
  if processes.count() == 1 or jax.default_backend() != "cpu":
    return
  by_process = np.array(sorted(jax.devices(), key=lambda d: (d.process_index, d.id)))
  # JAX's own exchanges between processes.
  lines = Mesh(by_process.reshape(processes.count(), -1), ("process", "device"))
  programs = [_meeting(mesh), _meeting(lines)]
  processes.wait_for_all("compiled the first exchange")
  for program, numbers in programs:
    jax.block_until_ready(program(numbers))


def _meeting(mesh: Mesh) -> tuple[jax.stages.Compiled, jax.Array]:
  """A program that sums over all groups of a mesh, one after another, and its argument."""
  replicated = PartitionSpec()

  def sums(number):
    for axes in _groups(mesh):
      number = lax.psum(number, axes)
    return number

  program = jax.jit(
    jax.shard_map(sums, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False)
  )
  one = np.ones((), np.float32)
  place = NamedSharding(mesh, replicated)
  number = jax.make_array_from_callback((), place, lambda index: one[index])
  return program.lower(number).compile(), number


def _groups(mesh: Mesh) -> Iterator[tuple[str, ...]]:
  """All combinations of the axes that have more than one device."""
  axes = [name for name, size in mesh.shape.items() if size > 1]
  for count in range(1, len(axes) + 1):
    yield from itertools.combinations(axes, count)
