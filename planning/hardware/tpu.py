"""TPU slices that need not be attached: peak rates, and the topologies of libtpu's compiler."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import re

from planning.hardware.chip import GIB, Chip, Pace, without_compiler

# Environment variables that keep libtpu off the network and from locking the machine.
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  # Compiling needs neither, but without them libtpu prints half a page of warnings.
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a lock file allows only one process
}


@dataclasses.dataclass(frozen=True)
class TpuGeneration:
  """A TPU generation: its chip, torus and naming.

  Attributes:
    chip: figures of one JAX device. Peak rates and links are from Austin et al. 2025 ("How to
      Scale Your Model", chapter 2), memory bandwidths from JAX's `tpu_info`; TPU7x's from Google
      Cloud's page of it, halved per device but for the links.
    pace: how close to its peak rates it comes.
    dimensions: dimensions of the torus.
    devices: JAX devices per chip.
    cores: TensorCores per chip.
    counts_cores: whether slice names count cores (v4-8: 8 cores) or chips (v5e-8: 8 chips).
    chip_config: libtpu's name of the chip configuration, if not the default.
  """

  chip: Chip
  pace: Pace
  dimensions: int
  devices: int = 1
  cores: int = 2
  counts_cores: bool = True
  chip_config: str | None = None


def _pace(
  generation: str,
  clock: float,
  cores: int,
  product_share: float,
  host_link: float,
  bandwidth_share: float = 0.8,
) -> Pace:
  """Makes a generation's pace; docs/design/replay.md says how each figure was set."""
  return Pace(
    generation,
    clock,
    cores,
    product_share=product_share,
    bandwidth_share=bandwidth_share,
    link_share=0.95,
    hop=1e-6,
    host_link=host_link,
  )


GENERATIONS = {
  "v3": TpuGeneration(
    Chip(61.5e12, 16 * GIB, 412e9, 2.0e11, "TPU v3 core"),
    _pace("v3", 0.94e9, 1, 0.98, 8e9),
    2,
    devices=2,
  ),
  "v4": TpuGeneration(
    Chip(275e12, 32 * GIB, 1230e9, 0.9e11, "TPU v4"),
    _pace("v4", 1.05e9, 2, 0.98, 16e9),
    3,
    chip_config="megacore",
  ),
  "v5e": TpuGeneration(
    Chip(197e12, 16 * GIB, 820e9, 0.9e11, "TPU v5e"),
    _pace("v5e", 1.5e9, 1, 0.98, 16e9),
    2,
    cores=1,
    counts_cores=False,
  ),
  "v5p": TpuGeneration(
    Chip(459e12, 95 * GIB, 2460e9, 1.8e11, "TPU v5p"), _pace("v5p", 1.75e9, 2, 0.97, 16e9), 3
  ),
  "v6e": TpuGeneration(
    Chip(918e12, 32 * GIB, 1640e9, 1.8e11, "TPU v6e"),
    _pace("v6e", 1.75e9, 1, 0.89, 32e9),
    2,
    cores=1,
    counts_cores=False,
  ),
  # A chip has two devices, of one core each, which share its links.
  "tpu7x": TpuGeneration(
    Chip(1153.5e12, 96 * GIB, 3690e9, 1.8e11, "TPU7x core"),
    _pace("tpu7x", 2.2e9, 1, 0.91, 32e9, bandwidth_share=0.75),
    3,
    devices=2,
  ),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice of a TPU generation; see `planning.hardware.chip.Hardware`."""

  name: str
  generation: TpuGeneration
  topology: str
  chips: int
  platform = "tpu"

  @property
  def device_count(self) -> int:
    """Number of JAX devices."""
    return self.chips * self.generation.devices

  @property
  def chip(self) -> Chip:
    """Figures of each device."""
    return self.generation.chip

  @property
  def pace(self) -> Pace:
    """How close to their peak rates the devices come."""
    return self.generation.pace

  @property
  def environment(self) -> dict[str, str]:
    """See `ENVIRONMENT`."""
    return ENVIRONMENT

  @functools.cached_property
  def devices(self) -> tuple:
    """The JAX devices to compile for.

    Raises:
      ValueError: the compiler is not installed, or does not know the slice.
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
    """Bytes per second that each device can send: in a ring along one axis of the torus.

    Devices of one chip, neighbours in the mesh, share its links: one ring through all of them has
    the whole rate, the rings of a mesh axis that keeps them apart share it.
    """
    devices = self.generation.devices
    chips = len({member // devices for member in members})
    return self.chip.link * len(members) / chips / devices


def slice_of(name: str) -> Slice | None:
  """Finds a slice by name, 'v5e-256' or 'v5p-128' (128 cores), or by shape, 'v5p:4x4x4'.

  Returns:
    the slice, or None if the name is not that of a TPU.

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
        f"hardware {name!r}: a slice of {kind} cannot have size {match[2]}, only a power of two. "
        f"Give its shape instead, such as {kind}:{'x'.join(['4'] * generation.dimensions)}."
      )
    shape = _shape(count, generation.dimensions)
  if len(shape) != generation.dimensions:
    raise ValueError(
      f"hardware {name!r}: a slice of {kind} has {generation.dimensions} dimensions."
    )
  topology = f"{kind}:{'x'.join(map(str, shape))}"
  return Slice(name, generation, topology, math.prod(shape))


def _shape(chips: int, dimensions: int) -> tuple[int, ...]:
  """Splits a power of two into the most even shape, smaller sides first."""
  shape = [1] * dimensions
  for _ in range(chips.bit_length() - 1):
    shape[shape.index(min(shape))] *= 2
  return tuple(sorted(shape)) if dimensions == 2 or min(shape) > 1 else tuple(shape)
