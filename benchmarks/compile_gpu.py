"""Compiles the recurrences, values and gradients, for an H200 that is not here.

    python -m benchmarks.compile_gpu

Needs the `gpu` extra (`make install EXTRAS=gpu`), but neither a GPU nor its driver. One line per compiled
program; the exit status counts the failures. CI does not run it: the CUDA libraries take 3 GB.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
# The plugin looks for the assembler in the toolkit's usual places, not where pip puts it; autotuning
# would need the device.
if nvidia := importlib.util.find_spec("nvidia"):
  toolkit = next(p for p in map(pathlib.Path, nvidia.submodule_search_locations)) / "cu13"
  os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_cuda_data_dir={toolkit} --xla_gpu_autotune_level=0"
  )

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.kernel_cases import (
  cotangents,
  linear_scan_arguments,
  rg_lru_arguments,
  with_gradient,
)
from kernels import platform
from kernels.linear_scan import linear_scan
from kernels.rg_lru import rg_lru

# The device as XLA describes it (GpuTargetConfigProto).
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 4800000000000 device_memory_size: 151397597184 l2_cache_size: 52428800
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a"
  device_address_bits: 64 name: "NVIDIA H200 141GB HBM3e"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200 141GB HBM3e"
"""
OPS = {"rg_lru": (rg_lru, rg_lru_arguments), "linear_scan": (linear_scan, linear_scan_arguments)}
SHAPES = ((8, 2048, 4096), (2, 32768, 2560), (8, 2048, 640), (3, 100, 128))


def main() -> None:
  topology = topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1")
  whole = NamedSharding(topologies.make_mesh(topology, (1,), ("device",)), P())
  print(f"{topology.devices[0].device_kind}, jax {jax.__version__}")
  failures = 0
  for implementation in ("mosaic_gpu", "associative"):
    for name, (op, arguments_of) in OPS.items():
      run = with_gradient(functools.partial(_run, op, implementation))
      for shape in SHAPES:
        for dtype in (jnp.bfloat16, jnp.float32):
          arguments = (*arguments_of(shape, dtype), *cotangents(shape, dtype))
          placed = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole) for a in arguments]
          print(
            f"{implementation:12} {name:12} {list(shape)!s:18} {jnp.dtype(dtype).name:9}", end=""
          )
          failures += not _compiles(run, placed)
  sys.exit(failures)


def _run(op, implementation, *arguments):
  return op(*arguments[:-1], reset=arguments[-1], implementation=implementation)


def _compiles(run, arguments) -> bool:
  start = time.perf_counter()
  try:
    with platform.targeting("gpu"):
      compiled = jax.jit(run).lower(*arguments).compile()
  except Exception as error:
    print(f" FAILED {type(error).__name__}: {str(error).splitlines()[0][:300]}", flush=True)
    return False
  megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
  print(f" {time.perf_counter() - start:5.1f} s, {megabytes:7.1f} MB temporary", flush=True)
  return True


if __name__ == "__main__":
  main()
