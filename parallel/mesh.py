"""The grid of devices that a program runs on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from bounds.bounds import Count, Shards

# Outermost first: neighbours in the last axis are the closest devices, and tensor parallelism
# exchanges the most.
AXES = ("data", "seq", "model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSpec:
  """Sizes of the mesh axes.

  Attributes:
    data: shards of the batch; -1 takes the devices that the other axes leave.
    seq: shards of the time axis.
    model: shards of heads, channels and vocabulary (section 4.1 of the Griffin paper).
    slices: groups of devices joined by the data-centre network; they divide `data`, whose
      collectives are the only ones to cross it.
  """

  data: Shards = -1
  seq: Shards = 1
  model: Shards = 1
  slices: Count = 1

  def __post_init__(self):
    sizes = {name: getattr(self, name) for name in AXES}
    for name, size in sizes.items():
      if size < 1 and size != -1:
        raise ValueError(
          f"mesh axis {name}={size} is no number of devices. "
          f"Set mesh.{name} to at least 1, or to -1 for the devices that are left."
        )
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
      raise ValueError(
        f"mesh axes {' and '.join(free)} are both -1, and one alone can take the devices that are "
        f"left. Set mesh.{free[-1]}."
      )
    if self.slices < 1:
      raise ValueError(f"mesh.slices={self.slices} must be at least 1.")

  def sizes(self, device_count: int) -> dict[str, int]:
    """The size of each axis on this many devices.

    Raises:
      ValueError: the axes do not fit the devices; it says what would.
    """
    sizes = {name: getattr(self, name) for name in AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    shown = " x ".join(f"{name}={size}" for name, size in sizes.items() if size != 1)
    free = [name for name, size in sizes.items() if size == -1]
    if free:
      if device_count % known:
        raise ValueError(
          f"mesh axes {shown} need a multiple of {known} devices, {device_count} are visible. "
          f"Set axes whose product divides {device_count}, or launch on {_multiple(device_count, known)}."
        )
      sizes[free[0]] = device_count // known
    elif known != device_count:
      most, rest = divmod(device_count * sizes["data"], known)
      way_out = f"Set mesh.data={most}, or launch" if most and not rest else "Launch"
      raise ValueError(
        f"mesh axes {shown or 'data=1'} need {known} devices, {device_count} are visible. "
        f"{way_out} on {known}."
      )
    if sizes["data"] % self.slices:
      raise ValueError(
        f"mesh.slices={self.slices} does not divide data={sizes['data']}: only the data axis crosses "
        "the network between slices. Make mesh.data a multiple of mesh.slices."
      )
    return sizes

  def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices.

    Args:
      devices: those of a topology that is not here, say; None takes all that are visible.

    Raises:
      ValueError: the axes do not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = tuple(self.sizes(len(devices)).values())
    return Mesh(self._arrange(devices, sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))

  def _arrange(self, devices: list[jax.Device], sizes: tuple[int, ...]) -> np.ndarray:
    if devices[0].platform == "cpu":
      return np.array(devices).reshape(sizes)
    if self.slices == 1:
      # Rings of the torus may have to be split where no axis has their length.
      return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    inside = (sizes[0] // self.slices, *sizes[1:])
    across = (self.slices, *(1 for _ in sizes[1:]))
    return mesh_utils.create_hybrid_device_mesh(
      inside, across, devices, allow_split_physical_axes=True
    )


def _multiple(number: int, of: int) -> int:
  """The smallest multiple of `of` that is not below `number`."""
  return -(-number // of) * of
