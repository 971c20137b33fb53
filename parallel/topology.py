"""What a TPU slice offers: figures for estimates, and the topology that its compiler knows it by."""

from __future__ import annotations

import dataclasses
import functools
import math
import re


@dataclasses.dataclass(frozen=True)
class Chip:
  """One JAX device.

  Peak rates and links are those of Austin et al. 2025 ("How to Scale Your Model", chapter 2), memory
  bandwidths those of JAX's `tpu_info`.

  Attributes:
    flops: bfloat16 operations per second.
    memory: bytes of HBM.
    bandwidth: bytes per second of HBM.
    link: bytes per second in both directions along one axis of the torus.
    dimensions: of the torus.
    devices: JAX devices per chip.
    cores: TensorCores per chip, which names of slices count where `counts_cores`.
    counts_cores: v4-8 has 8 cores, v5e-8 has 8 chips.
    chip_config: libtpu's name of a configuration that is not the default.
  """

  flops: float
  memory: float
  bandwidth: float
  link: float
  dimensions: int
  devices: int = 1
  cores: int = 2
  counts_cores: bool = True
  chip_config: str | None = None


GIB = 2**30
CHIPS = {
  "v3": Chip(61.5e12, 16 * GIB, 412e9, 2.0e11, 2, devices=2),
  "v4": Chip(275e12, 32 * GIB, 1230e9, 0.9e11, 3, chip_config="megacore"),
  "v5e": Chip(197e12, 16 * GIB, 820e9, 0.9e11, 2, cores=1, counts_cores=False),
  "v5p": Chip(459e12, 95 * GIB, 2460e9, 1.8e11, 3),
  "v6e": Chip(918e12, 32 * GIB, 1640e9, 1.8e11, 2, cores=1, counts_cores=False),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice of one generation.

  Attributes:
    name: as given.
    chip: its devices.
    topology: libtpu's name of it.
    device_count: JAX devices.
  """

  name: str
  chip: Chip
  topology: str
  device_count: int

  @functools.cached_property
  def devices(self) -> tuple:
    """Its devices, to compile for; they need not be here.

    Raises:
      ValueError: the compiler is not installed, or knows no such slice.
    """
    from jax.experimental import topologies

    options = {"chip_config_name": self.chip.chip_config} if self.chip.chip_config else {}
    try:
      found = topologies.get_topology_desc(self.topology, platform="tpu", **options)
    except Exception as error:
      raise ValueError(
        f"the TPU compiler has no slice {self.topology} ({self.name}): {error}. "
        "Name a slice that exists, and install the extra `tpu` or `test` for the compiler (libtpu)."
      ) from None
    return tuple(found.devices)


def slice_of(name: str) -> Slice:
  """A slice by name: 'v5e-256', 'v5p-128' (128 cores), or by its shape, 'v5p:4x4x4'.

  Raises:
    ValueError: the name is none of a TPU slice.
  """
  match = re.fullmatch(r"(\w+?)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
  if not match or match[1] not in CHIPS:
    raise ValueError(
      f"hardware {name!r} is not known: name a slice of {', '.join(CHIPS)}, such as v5e-256 or v5p:4x4x4."
    )
  kind, chip = match[1], CHIPS[match[1]]
  if match[3]:
    shape = tuple(int(n) for n in match[3].split("x"))
  else:
    count, rest = divmod(int(match[2]), chip.cores if chip.counts_cores else 1)
    if rest or not count or count & (count - 1):
      raise ValueError(
        f"hardware {name!r}: {match[2]} is no power of two that a slice of {kind} has. "
        f"Give its shape instead, such as {kind}:{'x'.join(['4'] * chip.dimensions)}."
      )
    shape = _shape(count, chip.dimensions)
  if len(shape) != chip.dimensions:
    raise ValueError(f"hardware {name!r}: a slice of {kind} has {chip.dimensions} dimensions.")
  topology = f"{kind}:{'x'.join(map(str, shape))}"
  return Slice(name, chip, topology, math.prod(shape) * chip.devices)


def _shape(chips: int, dimensions: int) -> tuple[int, ...]:
  """The most even shape of a power of two, smaller sides first; a plane has its third side last."""
  shape = [1] * dimensions
  for _ in range(chips.bit_length() - 1):
    shape[shape.index(min(shape))] *= 2
  return tuple(sorted(shape)) if dimensions == 2 or min(shape) > 1 else tuple(shape)
