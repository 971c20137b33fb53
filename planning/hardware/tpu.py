"""Slices of TPUs that are not here: what they offer, and the topology that the compiler knows them
by.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import re

from planning.hardware.chip import GIB, Chip, without_compiler


@dataclasses.dataclass(frozen=True)
class TpuGeneration:
  """How chips of one kind are joined and counted.

  Attributes:
    chip: one JAX device of it. Peak rates and links are those of Austin et al. 2025 ("How to Scale
      Your Model", chapter 2), memory bandwidths those of JAX's `tpu_info`.
    dimensions: of the torus.
    devices: JAX devices per chip.
    cores: TensorCores per chip, which names of slices count where `counts_cores`.
    counts_cores: v4-8 has 8 cores, v5e-8 has 8 chips.
    chip_config: libtpu's name of a configuration that is not the default.
  """

  chip: Chip
  dimensions: int
  devices: int = 1
  cores: int = 2
  counts_cores: bool = True
  chip_config: str | None = None


GENERATIONS = {
  "v3": TpuGeneration(Chip(61.5e12, 16 * GIB, 412e9, 2.0e11, "TPU v3 core"), 2, devices=2),
  "v4": TpuGeneration(Chip(275e12, 32 * GIB, 1230e9, 0.9e11, "TPU v4"), 3, chip_config="megacore"),
  "v5e": TpuGeneration(
    Chip(197e12, 16 * GIB, 820e9, 0.9e11, "TPU v5e"), 2, cores=1, counts_cores=False
  ),
  "v5p": TpuGeneration(Chip(459e12, 95 * GIB, 2460e9, 1.8e11, "TPU v5p"), 3),
  "v6e": TpuGeneration(
    Chip(918e12, 32 * GIB, 1640e9, 1.8e11, "TPU v6e"), 2, cores=1, counts_cores=False
  ),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice of one generation; see `planning.hardware.chip.Hardware`."""

  name: str
  generation: TpuGeneration
  topology: str
  device_count: int
  platform = "tpu"

  @property
  def chip(self) -> Chip:
    """Its devices."""
    return self.generation.chip

  @property
  def environment(self) -> dict[str, str]:
    """Keeps libtpu from asking the network what machine it is on, and from wanting it for
    itself.
    """
    return {
      "TPU_SKIP_MDS_QUERY": "1",
      # Where libtpu finds neither of these it prints half a page; compiling needs neither.
      "TPU_WORKER_HOSTNAMES": "localhost",
      "TPU_ACCELERATOR_TYPE": "v5litepod-1",
      "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a lock file admits one process
    }

  @functools.cached_property
  def devices(self) -> tuple:
    """Its devices, to compile for; they need not be here.

    Raises:
      ValueError: the compiler is not installed, or knows no such slice.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
      raise ValueError(without_compiler(self.name, "the TPU compiler (libtpu)", "tpu"))
    config = self.generation.chip_config
    options = {"chip_config_name": config} if config else {}
    try:
      found = topologies.get_topology_desc(self.topology, platform="tpu", **options)
    except Exception as error:
      raise ValueError(
        f"the TPU compiler has no slice {self.topology} ({self.name}): {error}. "
        "Name a slice that exists."
      ) from None
    return tuple(found.devices)

  def link(self, members: tuple[int, ...]) -> float:
    """Collectives count as rings along one axis of the torus, whichever devices take part."""
    del members
    return self.chip.link


def slice_of(name: str) -> Slice | None:
  """A slice by name: 'v5e-256', 'v5p-128' (128 cores), or by its shape, 'v5p:4x4x4'.

  Returns:
    None if the name is of another kind.

  Raises:
    ValueError: the generation has no such slice.
  """
  match = re.fullmatch(r"(\w+?)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
  if not match or match[1] not in GENERATIONS:
    return None
  kind, generation = match[1], GENERATIONS[match[1]]
  if match[3]:
    shape = tuple(int(n) for n in match[3].split("x"))
  else:
    count, rest = divmod(int(match[2]), generation.cores if generation.counts_cores else 1)
    if rest or not count or count & (count - 1):
      raise ValueError(
        f"hardware {name!r}: {match[2]} is no power of two that a slice of {kind} has. "
        f"Give its shape instead, such as {kind}:{'x'.join(['4'] * generation.dimensions)}."
      )
    shape = _shape(count, generation.dimensions)
  if len(shape) != generation.dimensions:
    raise ValueError(
      f"hardware {name!r}: a slice of {kind} has {generation.dimensions} dimensions."
    )
  topology = f"{kind}:{'x'.join(map(str, shape))}"
  return Slice(name, generation, topology, math.prod(shape) * generation.devices)


def _shape(chips: int, dimensions: int) -> tuple[int, ...]:
  """The most even shape of a power of two, smaller sides first; a plane has its third side last."""
  shape = [1] * dimensions
  for _ in range(chips.bit_length() - 1):
    shape[shape.index(min(shape))] *= 2
  return tuple(sorted(shape)) if dimensions == 2 or min(shape) > 1 else tuple(shape)
