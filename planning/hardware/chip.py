"""Peak rates and memory of a device, from which times are estimated."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak rates and memory of one JAX device.

  Attributes:
    flops: bfloat16 FLOP/s.
    memory: bytes of HBM that a process can use.
    bandwidth: HBM bytes per second.
    link: bytes per second that it can send within a slice or node: along one axis of a TPU's
      torus, both directions together; over a GPU's NVLink.
    name: the device's name for display, and to the GPU compiler.
    share: `memory` as a share of the device's memory: the fraction that JAX must be set to take.
  """

  flops: float
  memory: float
  bandwidth: float
  link: float
  name: str
  share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Pace:
  """How close to its peak rates a device comes; see `planning.replay`.

  Attributes:
    generation: name of the device's generation.
    clock: cycles per second of a TPU's core; None where the compiler counts no cycles.
    cores: TensorCores that share one device's work.
    product_share: on a TPU, the time of a matrix product over the compiler's estimate of it; on a
      GPU, the achieved share of the peak FLOP/s.
    bandwidth_share: achieved share of the HBM bandwidth.
    link_share: achieved share of the rate of the links.
    hop: seconds of latency from one device to the next.
    host_link: bytes per second between a device and its host's memory, either way.
  """

  generation: str
  clock: float | None
  cores: int
  product_share: float
  bandwidth_share: float
  link_share: float
  hop: float
  host_link: float


class Hardware(Protocol):
  """Devices that need not be attached: a TPU slice, or GPU nodes.

  Attributes:
    name: the name that it was found by.
    platform: 'tpu' or 'gpu'.
    chip: figures of each device.
    pace: how close to them the device comes.
    device_count: number of JAX devices.
    chips: number of chips; on v3 and TPU7x, a chip is two devices.
    topology: how they are connected, for display.
    environment: environment variables that the compiler needs before JAX is imported.
    devices: the JAX devices to compile for. Raises ValueError if the compiler is not installed or
      does not know the topology.
  """

  @property
  def name(self) -> str: ...

  @property
  def platform(self) -> str: ...

  @property
  def chip(self) -> Chip: ...

  @property
  def pace(self) -> Pace: ...

  @property
  def device_count(self) -> int: ...

  @property
  def chips(self) -> int: ...

  @property
  def topology(self) -> str: ...

  @property
  def environment(self) -> dict[str, str]: ...

  @property
  def devices(self) -> tuple[Any, ...]: ...

  def link(self, members: tuple[int, ...]) -> float:
    """Bytes per second that each of these devices can send in a collective among them."""
    ...


def without_compiler(name: str, compiler: str, extra: str) -> str:
  """Makes the error for a compiler that is not installed."""
  return (
    f"hardware {name!r} needs {compiler}, which is not installed; no such device is needed. "
    f"Install the extra `{extra}`: make install EXTRAS={extra}."
  )
