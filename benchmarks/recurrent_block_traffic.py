"""HBM traffic of a whole recurrent block, as the TPU compiler lays it out; no TPU is needed.

    python -m benchmarks.recurrent_block_traffic                  # v5e, [8, 2048, 2560], 10 heads
    python -m benchmarks.recurrent_block_traffic v6e --json

Per direction: gigabytes that XLA's cost model says all operations read and write (a Pallas kernel
counts what its `CostEstimate` says: every array once), bytes per element of [B, T, R], and the
operations that move most of them. `forward` is the block alone, `gradient` its value and the
gradients of the input and of all weights.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from benchmarks import absent_tpu

import jax  # isort: skip
import jax.numpy as jnp

from kernels import platform
from layers.recurrent_block import RecurrentBlock
from layers.segments import Segments
from planning.hlo import bytes_accessed
from planning.hlo import text as hlo

SHAPE = (8, 2048, 2560)
HEADS = 10


def compiled(generation: str, shape=SHAPE, heads=HEADS, implementation="pallas_tpu"):
  """{'forward' or 'gradient': compiled program} of a block with bfloat16 weights."""
  batch, steps, width = shape
  bfloat16 = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
  block = RecurrentBlock(width, heads, implementation=implementation, **bfloat16)
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  ids = jax.ShapeDtypeStruct((batch, steps), jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0))

  with platform.targeting("tpu"):
    variables = jax.eval_shape(
      lambda key, x, ids: block.init(key, x, Segments(ids, ids)), key, x, ids
    )
    # Without the boxes that name logical axes.
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), variables["params"])
    leaves, structure = jax.tree.flatten(params)

    def forward(x, ids, positions, *leaves):
      params = jax.tree.unflatten(structure, leaves)
      return block.apply({"params": params}, x, Segments(ids, positions))[0]

    def gradient(x, ids, positions, dy, *leaves):
      y, vjp = jax.vjp(lambda x, *leaves: forward(x, ids, positions, *leaves), x, *leaves)
      return y, vjp(dy)

    return {
      "forward": absent_tpu.compile_for(generation, forward, x, ids, ids, *leaves),
      "gradient": absent_tpu.compile_for(generation, gradient, x, ids, ids, x, *leaves),
    }


def traffic(program) -> float:
  """Bytes that all operations of a program read and write, by XLA's cost model."""
  analysis = program.cost_analysis()
  return (analysis[0] if isinstance(analysis, list) else analysis)["bytes accessed"]


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("generation", nargs="?", default="v5e", choices=absent_tpu.GENERATIONS)
  parser.add_argument("--implementation", default="pallas_tpu")
  parser.add_argument("--shape", nargs=3, type=int, default=SHAPE, metavar=("B", "T", "R"))
  parser.add_argument("--heads", type=int, default=HEADS)
  parser.add_argument("--json", action="store_true", help="print {direction: bytes} only")
  options = parser.parse_args()
  shape = tuple(options.shape)
  programs = compiled(options.generation, shape, options.heads, options.implementation)
  if options.json:
    print(json.dumps({name: traffic(program) for name, program in programs.items()}))
    return
  for name, program in programs.items():
    moved = traffic(program)
    memory: Any = program.memory_analysis()
    print(
      f"{name}: {moved / 1e9:.2f} GB, {moved / math.prod(shape):.1f} bytes per element, "
      f"{memory.temp_size_in_bytes / 1e9:.2f} GB of temporaries"
    )
    text = hlo.HloProgram(program.as_text() or "")
    for source, size in bytes_accessed.traffic(text).by_source.items():
      if size > 0.01 * moved:
        print(f"  {size / 1e9:6.3f} GB  {source[:150]}")


if __name__ == "__main__":
  main()
