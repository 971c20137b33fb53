"""TPUs that need not be attached: libtpu compiles for them anyway.

Importing this module points JAX at the CPU and keeps libtpu from asking the network what machine it
is on, and from warning that it does not know. So it must come before the first use of JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Sequence

from planning.hardware import tpu

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.update({**tpu.ENVIRONMENT, **os.environ})

import jax
import numpy as np
from jax.experimental import topologies
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from base.wording import near
from planning.hardware.chip import without_compiler


@dataclasses.dataclass(frozen=True)
class Generation:
  """One kind of TPU.

  Attributes:
    topology: a small slice of it, by libtpu's name.
    cores: that share the memory bandwidth of one JAX device.
    bandwidth: HBM bytes per second of one JAX device, from JAX's tpu_info.
    clock: Hz; v6e's is not published and taken to be v5p's.
    native_math: whether sigmoid and rsqrt are single instructions.
    chip_config: libtpu's name of a configuration that is not the default.
  """

  topology: str
  cores: int
  bandwidth: float
  clock: float
  native_math: bool = False
  chip_config: str | None = None

  def bundles_at_floor(self, bytes_per_element: float) -> float:
    """Instruction bundles per 1024 elements that fit in the time HBM needs for them."""
    return 1024 * bytes_per_element * self.clock / (self.bandwidth / self.cores)


GENERATIONS = {
  "v3": Generation("v3:2x2", 1, 412e9, 0.94e9),
  "v4": Generation("v4:2x2x2", 2, 1230e9, 1.05e9, chip_config="megacore"),
  "v5e": Generation("v5e:2x4", 1, 820e9, 1.5e9),
  "v5p": Generation("v5p:2x2x2", 2, 2460e9, 1.75e9),
  "v6e": Generation("v6e:2x4", 1, 1640e9, 1.75e9, native_math=True),
  # Two single-core JAX devices per chip, 7.4 TB/s together; the clock is that of
  # `planning.hardware.tpu`.
  "tpu7x": Generation("tpu7x:2x2x1", 1, 3690e9, 2.2e9, native_math=True),
}


def chosen(names: Sequence[str]) -> Sequence[str]:
  """The generations that a command names; all if it names none. Ends it if one is unknown."""
  for name in names:
    if name not in GENERATIONS:
      raise SystemExit(f"error: unknown generation: {name!r}{near(name, GENERATIONS)}")
  return names or tuple(GENERATIONS)


@functools.cache
def devices(name: str) -> tuple:
  """The devices of a generation's topology; they can be compiled for, not run on.

  Raises:
    SystemExit: the compiler is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise SystemExit(f"error: {without_compiler(name, 'the TPU compiler (libtpu)', 'tpu')}")
  generation = GENERATIONS[name]
  options = {"chip_config_name": generation.chip_config} if generation.chip_config else {}
  topology = topologies.get_topology_desc(generation.topology, platform="tpu", **options)
  return tuple(topology.devices)


@functools.cache
def traced(function, *arguments: jax.ShapeDtypeStruct):
  """The function as its trace: flat results, and nothing left of what it took to write it down.

  Tracing a kernel takes longer than compiling it, and every generation may share the trace.
  """
  return jaxpr_as_fun(jax.make_jaxpr(function)(*arguments))


def compile_for(name: str, function, *arguments: jax.ShapeDtypeStruct):
  """Compiles a function of whole arrays for one device of a generation."""
  mesh = Mesh(np.array(devices(name)[:1]), ("device",))
  placed = [
    jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, P())) for a in arguments
  ]
  return jax.jit(function).lower(*placed).compile()
