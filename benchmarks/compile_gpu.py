"""Compiles the kernels, values and gradients, for an H200 that need not be attached.

    python -m benchmarks.compile_gpu
    python -m benchmarks.compile_gpu --op attention
    python -m benchmarks.compile_gpu --op delta_rule

Needs the `gpu` extra (`make install EXTRAS=gpu`), but neither a GPU nor its driver. One line per
compiled program; the exit status counts the failures. CI does not run it: the CUDA libraries take 3
GB.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
from typing import Any

from benchmarks import absent_gpu

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.kernel_cases import (
  attention_arguments,
  attention_with_gradient,
  cotangents,
  delta_arguments,
  linear_attention_arguments,
  linear_scan_arguments,
  rg_lru_arguments,
)
from comparison.speed.recurrences import with_gradient
from kernels import platform
from kernels.attention import attention
from kernels.delta_rule import delta_rule
from kernels.gated_linear_attention import gated_linear_attention
from kernels.linear_scan import linear_scan
from kernels.rg_lru import rg_lru

OPS = {"rg_lru": (rg_lru, rg_lru_arguments), "linear_scan": (linear_scan, linear_scan_arguments)}
# Their form for GPUs is chunks in XLA.
MATRIX_OPS = {
  "delta_rule": (delta_rule, delta_arguments),
  "linear_attention": (gated_linear_attention, linear_attention_arguments),
}
MATRIX_SHAPES = ((8, 4096, 16, 128), (8, 2048, 16, 64))
SHAPES = ((8, 2048, 4096), (2, 32768, 2560), (8, 2048, 640), (3, 100, 128))
# ([B, T, H, K], key/value heads, window): the paper's local attention, whole rows, wide heads.
ATTENTION_SHAPES = (
  ((8, 2048, 10, 128), 1, 1024),
  ((8, 2048, 16, 128), 16, None),
  ((1, 32768, 10, 256), 1, 2048),
  ((3, 100, 4, 64), 2, None),
)


def main() -> None:
  form = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
  parser.add_argument("--op", choices=(*OPS, "attention", *MATRIX_OPS), help="this operation alone")
  only = parser.parse_args().op
  device = absent_gpu.device()
  whole = NamedSharding(Mesh(np.array([device]), ("device",)), P())
  print(f"{device.device_kind}, jax {jax.__version__}")
  failures = 0
  for title, run, arguments in _cases():
    if only is None or title.split()[1] == only:
      placed = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole) for a in arguments]
      print(title, end="")
      failures += not _compiles(run, placed)
  sys.exit(failures)


def _cases():
  """(title, function, types of its arguments) of each program."""
  for implementation in ("mosaic_gpu", "associative"):
    for name, (op, arguments_of) in OPS.items():
      run = with_gradient(functools.partial(_run, op, implementation))
      for shape, dtype in itertools.product(SHAPES, (jnp.bfloat16, jnp.float32)):
        arguments = (*arguments_of(shape, dtype), *cotangents(shape, dtype))
        type_name = jnp.dtype(dtype).name
        yield f"{implementation:13} {name:12} {list(shape)!s:20} {type_name:9}", run, arguments
  for implementation in ("mosaic_gpu", "xla_blockwise"):
    for shape, kv_heads, window in ATTENTION_SHAPES:
      run = attention_with_gradient(functools.partial(_attend, implementation, window))
      arguments = attention_arguments(shape, kv_heads, jnp.bfloat16)
      title = f"{implementation:13} {'attention':12} {list(shape)!s:20} window {window!s:5}"
      yield title, run, arguments

  for (name, (op, arguments_of)), decay, shape in itertools.product(
    MATRIX_OPS.items(), ("head", "channel"), MATRIX_SHAPES
  ):
    run = with_gradient(functools.partial(_run, op, "chunked"))
    title = f"{'chunked':13} {name:16} {list(shape)!s:20} decay per {decay:7}"
    yield title, run, arguments_of(shape, decay, jnp.bfloat16)


def _attend(implementation, window, q, k, v, ids):
  return attention(
    *(q, k, v),
    q_segment_ids=ids,
    kv_segment_ids=ids,
    window=window,
    implementation=implementation,
  )


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
  memory: Any = compiled.memory_analysis()
  megabytes = memory.temp_size_in_bytes / 1e6
  print(f" {time.perf_counter() - start:5.1f} s, {megabytes:7.1f} MB temporary", flush=True)
  return True


if __name__ == "__main__":
  main()
