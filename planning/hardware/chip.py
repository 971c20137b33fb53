"""What one device offers: the figures that estimates rest on."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One JAX device.

  Attributes:
    flops: bfloat16 operations per second.
    memory: bytes of HBM that a process gets.
    bandwidth: bytes per second of HBM.
    link: bytes per second that it can send to devices of the same slice or node: along one axis of
      a TPU's torus, in both directions together; over a GPU's NVLink.
    name: as the device calls itself.
    share: of the device's memory that this is: what JAX must be told to take.
  """

  flops: float
  memory: float
  bandwidth: float
  link: float
  name: str
  share: float = 1.0


class Hardware(Protocol):
  """Devices that need not be here: a slice of TPUs, or nodes of GPUs.

  Attributes:
    name: as given.
    platform: 'tpu' or 'gpu'.
    chip: its devices.
    device_count: their number.
    topology: how they are joined, for people.
    environment: environment variables that the compiler needs before JAX is imported.
    devices: the JAX devices to compile for. Raises ValueError if the compiler is not installed or
      knows no such topology.
  """

  @property
  def name(self) -> str: ...

  @property
  def platform(self) -> str: ...

  @property
  def chip(self) -> Chip: ...

  @property
  def device_count(self) -> int: ...

  @property
  def topology(self) -> str: ...

  @property
  def environment(self) -> dict[str, str]: ...

  @property
  def devices(self) -> tuple[Any, ...]: ...

  def link(self, members: tuple[int, ...]) -> float:
    """Bytes per second that each of these devices can send while they exchange something."""
    ...


def without_compiler(name: str, compiler: str, extra: str) -> str:
  """The error of hardware whose compiler is not installed."""
  return (
    f"hardware {name!r} needs {compiler}, which is not installed; no such device is needed. "
    f"Install the extra `{extra}`: make install EXTRAS={extra}."
  )
