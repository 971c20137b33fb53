"""NVIDIA GPU nodes that need not be attached: peak rates, and the setup to compile for them."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import pathlib
import re

from planning.hardware.chip import GIB, Chip, Pace, without_compiler

PER_NODE = 8  # GPUs connected by NVLink

# XLA's GpuTargetConfigProto of a Hopper GPU; bandwidth, memory and name vary.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f} l2_cache_size: 52428800
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a"
  device_address_bits: 64 name: "{name}"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
# Share of a GPU's memory for JAX, in place of its default 0.75; the rest is for the driver, NCCL
# and cuBLAS.
MEMORY_FRACTION = 0.92
FRACTION_VARIABLE = "XLA_CLIENT_MEM_FRACTION"
# Its older name; JAX refuses both at once.
_OLD_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"


def _hopper(memory: float, bandwidth: float, name: str) -> Chip:
  """Makes a chip with JAX's share of its memory; `memory` is CUDA's total, in bytes."""
  # Rates of the SXM5 boards' data sheets: dense bfloat16, and NVLink 4's 900 GB/s, half of it each
  # way.
  return Chip(989.4e12, MEMORY_FRACTION * memory, bandwidth, 450e9, name, MEMORY_FRACTION)


# CUDA reports other totals than the gigabytes in the names.
CHIPS = {
  "h100": _hopper(79.1 * GIB, 3350e9, "NVIDIA H100 80GB HBM3"),
  "h200": _hopper(139.8 * GIB, 4800e9, "NVIDIA H200 141GB HBM3e"),
}
# Per GPU and direction, between nodes: 400 Gb/s.
NETWORK = 50e9
# Not checked on a device. docs/design/replay.md says how each figure was set.
PACE = Pace(
  "hopper",
  clock=None,
  cores=1,
  product_share=0.7,
  bandwidth_share=0.9,
  link_share=0.8,
  hop=2e-6,
  host_link=50e9,
)


@dataclasses.dataclass(frozen=True)
class Nodes:
  """GPU nodes, eight GPUs each; see `planning.hardware.chip.Hardware`."""

  name: str
  chip: Chip
  device_count: int
  platform = "gpu"
  pace = PACE

  @property
  def chips(self) -> int:
    """Number of GPUs."""
    return self.device_count

  @property
  def topology(self) -> str:
    """The connection of the GPUs, for display."""
    nodes = -(-self.device_count // PER_NODE)
    return f"{nodes} node{'s' if nodes > 1 else ''} of {min(self.device_count, PER_NODE)}"

  @property
  def environment(self) -> dict[str, str]:
    """Environment variables that the compiler needs before JAX is imported."""
    # Autotuning would need the device. Matrix products go to cuBLAS, as tuning would decide for
    # large ones; untuned Triton kernels would get tiles that are never used in practice.
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    found = importlib.util.find_spec("nvidia")
    for folder in (found and found.submodule_search_locations) or ():
      # The plugin does not look for the assembler where pip installs it.
      if (toolkit := pathlib.Path(folder) / "cu13").is_dir():
        flags += f" --xla_gpu_cuda_data_dir={toolkit}"
    return {"XLA_FLAGS": flags}

  @functools.cached_property
  def devices(self) -> tuple:
    """The JAX devices to compile for.

    Raises:
      ValueError: the compiler is not installed.
    """
    from jax.experimental import topologies

    if not _plugin_is_installed():
      raise ValueError(without_compiler(self.name, "the CUDA plugin (jax-cuda13-plugin)", "gpu"))
    nodes, each = -(-self.device_count // PER_NODE), min(self.device_count, PER_NODE)
    try:
      found = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(self.chip), topology=f"1x{nodes}x{each}"
      )
    except Exception as error:
      raise ValueError(f"the GPU compiler does not start for {self.name}: {error}") from None
    return tuple(found.devices)

  def link(self, members: tuple[int, ...]) -> float:
    """Bytes per second that each of these devices can send in a collective among them.

    Rings within a node run on NVLink; rings across nodes share the network cards of the members in
    a node.
    """
    in_one = sum(member // PER_NODE == members[0] // PER_NODE for member in members)
    return self.chip.link if in_one == len(members) else min(self.chip.link, in_one * NETWORK)


def take_memory() -> None:
  """Sets JAX's share of GPU memory as plans assume, unless the user did; call before JAX starts."""
  if _OLD_VARIABLE not in os.environ:
    os.environ.setdefault(FRACTION_VARIABLE, str(MEMORY_FRACTION))


def target_config(chip: Chip) -> str:
  """Returns XLA's description of the chip as a compilation target."""
  return _HOPPER.format(bandwidth=chip.bandwidth, memory=chip.memory / chip.share, name=chip.name)


def nodes_of(name: str) -> Nodes | None:
  """Finds GPU nodes by name, such as 'h200-8' or 'h100-64'; None for other names.

  Raises:
    ValueError: the number of GPUs does not fill nodes.
  """
  match = re.fullmatch(r"(\w+)-(\d+)", name)
  if not match or match[1] not in CHIPS:
    return None
  count = int(match[2])
  if count not in (1, 2, 4) and (count < 1 or count % PER_NODE):
    raise ValueError(
      f"hardware {name!r}: a node has {PER_NODE} GPUs. Give 1, 2, 4, or a multiple of {PER_NODE}."
    )
  return Nodes(name, CHIPS[match[1]], count)


def _plugin_is_installed() -> bool:
  try:
    return importlib.util.find_spec("jax_plugins.xla_cuda13") is not None
  except ModuleNotFoundError:
    return False
