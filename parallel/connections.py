"""Connects the CPUs of several hosts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parallel import processes


def connect(mesh: Mesh) -> None:
  """Connects every group of devices of later collectives; only for several processes on CPUs.

  Gloo connects a group at its first exchange, and fails if one host is 30 s later than another, for
  example because it compiles more slowly or reads a slower disk. Connected hosts wait for each
  other. Accelerators need none of this.
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
  """Returns a program that sums over all groups of a mesh in turn, and its argument."""
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
  """Lists all combinations of the axes with more than one device."""
  axes = [name for name, size in mesh.shape.items() if size > 1]
  for count in range(1, len(axes) + 1):
    yield from itertools.combinations(axes, count)
