"""The mesh of devices that a program runs on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from base.ranges import Count, Shards

# Each axis with the macro that sets its size in the files of gin/mesh/. Outermost first: neighbours
# in the last axis are the closest devices, and tensor parallelism exchanges the most.
MACROS = {"data": "DATA_SHARDS", "seq": "SEQUENCE_SHARDS", "model": "MODEL_SHARDS"}
AXES = tuple(MACROS)
# What an error tells the user to set.
FLAGS = {axis: f"--gin.{macro}" for axis, macro in MACROS.items()}


class Device(Protocol):
  """The used attributes of a `jax.Device`, which has no type that a checker knows."""

  @property
  def platform(self) -> str: ...

  @property
  def process_index(self) -> int: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSpec:
  """Sizes of the mesh axes.

  Attributes:
    data: shards of the batch; -1 takes the remaining devices.
    seq: shards of the time axis.
    model: shards of heads, channels and vocabulary (section 4.1 of the Griffin paper).
    slices: groups of devices connected by the data-centre network; must divide `data`, the only
      axis with collectives across it.
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
          f"mesh axis {name}={size} must be at least 1, or -1 for the remaining devices. "
          f"Set {FLAGS[name]}."
        )
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
      raise ValueError(
        f"mesh axes {' and '.join(free)} are both -1, and only one axis can take the remaining "
        f"devices. Set {FLAGS[free[-1]]} to a number of devices."
      )
    if self.slices < 1:
      raise ValueError(f"mesh.slices={self.slices} must be at least 1.")

  def sizes(self, device_count: int) -> dict[str, int]:
    """Returns the size of each axis on this many devices.

    Raises:
      ValueError: the axes do not fit the devices; the message says what would.
    """
    sizes = {name: getattr(self, name) for name in AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    shown = " x ".join(f"{name}={size}" for name, size in sizes.items() if size != 1)
    free = [name for name, size in sizes.items() if size == -1]
    if free:
      if device_count % known:
        raise ValueError(
          f"mesh axes {shown} need a multiple of {known} devices, {_visible(device_count)}. "
          f"Set {_flags(free, sizes)} so that the product divides {device_count}, or launch on "
          f"{_multiple(device_count, known)}."
        )
      sizes[free[0]] = device_count // known
    elif known != device_count:
      most, rest = divmod(device_count * sizes["data"], known)
      way_out = f"Set {_flags(free, sizes)} so that the product is {device_count}"
      if most and not rest:
        way_out = f"Set {FLAGS['data']}={most}"
      raise ValueError(
        f"mesh axes {shown or 'data=1'} need {known} devices, {_visible(device_count)}. "
        f"{way_out}, or launch on {known}."
      )
    if sizes["data"] % self.slices:
      raise ValueError(
        f"mesh.slices={self.slices} does not divide data={sizes['data']}, the only axis across "
        f"slices. Make {FLAGS['data']} a multiple of mesh.MeshSpec.slices."
      )
    return sizes

  def build(self, devices: Sequence[Device] | None = None) -> Mesh:
    """Arranges devices in a mesh.

    Args:
      devices: the devices, which need not be attached; None takes all visible ones.

    Raises:
      ValueError: the axes do not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = tuple(self.sizes(len(devices)).values())
    return Mesh(self._arrange(devices, sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))

  def _arrange(self, devices: list[Device], sizes: tuple[int, ...]) -> np.ndarray:
    if devices[0].platform == "cpu":
      return np.array(devices).reshape(sizes)
    if self.slices == 1:
      # Rings of the torus are split if no axis has their length.
      return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    inside = (sizes[0] // self.slices, *sizes[1:])
    across = (self.slices, *(1 for _ in sizes[1:]))
    return mesh_utils.create_hybrid_device_mesh(
      inside, across, devices, allow_split_physical_axes=True
    )


def _visible(devices: int) -> str:
  return "1 is visible" if devices == 1 else f"{devices} are visible"


def _flags(free: list[str], sizes: dict[str, int]) -> str:
  """Formats the arguments of the axes that have a fixed size other than 1."""
  named = [name for name in AXES if name not in free and sizes[name] != 1]
  return " and ".join(FLAGS[name] for name in named or ["data"])


def _multiple(number: int, of: int) -> int:
  """Returns the smallest multiple of `of` that is at least `number`."""
  return -(-number // of) * of
