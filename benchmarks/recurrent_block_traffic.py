"""HBM traffic of a whole recurrent block, as the TPU compiler lays it out; no TPU is needed.

    python -m benchmarks.recurrent_block_traffic                  # v5e, [8, 2048, 2560], 10 heads
    python -m benchmarks.recurrent_block_traffic v6e --json

Per direction: gigabytes that XLA's cost model says all operations read and write (a Pallas kernel counts
what its `CostEstimate` says: every array once), bytes per element of [B, T, R], and the operations that
move most of them. `forward` is the block alone, `gradient` its value and the gradients of the input and
of all weights.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import re

from benchmarks import absent_tpu

import jax  # isort: skip
import jax.numpy as jnp

from kernels import platform
from layers.recurrent_block import RecurrentBlock
from layers.segments import Segments

SHAPE = (8, 2048, 2560)
HEADS = 10
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
# Operations that touch no memory, or whose traffic belongs to the operation that ends them.
FREE = {"parameter", "bitcast", "tuple", "get-tuple-element", "constant", "after-all"}


def compiled(generation: str, shape=SHAPE, heads=HEADS, implementation="pallas_tpu"):
  """{'forward' or 'gradient': compiled program} of a block with bfloat16 weights."""
  batch, steps, width = shape
  bfloat16 = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
  block = RecurrentBlock(width, heads, implementation=implementation, **bfloat16)
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  ids = jax.ShapeDtypeStruct((batch, steps), jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0))

  with platform.targeting("tpu"):
    variables = jax.eval_shape(block.init, key, x, Segments(ids, ids))
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


def operations(program) -> dict[str, int]:
  """Bytes by what the operations come from, the largest first.

  An estimate of what the cost model sums up: operands and results of each operation, of slices only the
  slice, and of updates in place only the update.
  """
  computations = _computations(program.as_text())
  by_source = collections.Counter()
  for name, (kind, result, operands, line) in computations.pop("ENTRY").items():
    if kind in FREE or kind.endswith("-done"):
      continue
    called = re.search(r"calls=%([\w.\-]+)", line)
    body = computations.get(called[1]) if called else None
    if body:
      moved = _fusion_size(body)
    else:
      moved = result + sum(size for size in operands.values())
    source = re.search(r'op_name="([^"]*)"', line)
    by_source[f"{kind}: {source[1] if source else name}"] += moved
  return dict(by_source.most_common())


def _computations(text: str) -> dict[str, dict]:
  """{computation: {instruction: (kind, size of result, {operand: size}, line)}}."""
  found, current, sizes = {}, {}, {}
  for line in text.splitlines():
    header = re.match(r"(ENTRY )?%(\S+) \(.*\{$", line)
    if header:
      current, sizes = found.setdefault("ENTRY" if header[1] else header[2], {}), {}
    match = re.match(r"\s*(?:ROOT )?%(\S+) = (.*?) ([a-z\-]+)\((.*?)\)(?:,|$)", line)
    if match:
      name, result, kind, operands = match.groups()
      sizes[name] = _size(result)
      read = {o: sizes.get(o, 0) for o in re.findall(r"%([\w.\-]+)", operands)}
      current[name] = (kind, sizes[name], read, line)
  return found


def _fusion_size(body: dict) -> int:
  """Bytes that a fused computation reads and writes."""
  updates = [o for o in body.values() if o[0] == "dynamic-update-slice"]
  total, in_place = 0, {next(iter(update[2])) for update in updates}
  for name, (kind, size, _, line) in body.items():
    if kind == "parameter" and name not in in_place:
      uses = [o for o in body.values() if name in o[2]]
      # A fusion inside a fusion that has one argument is a slice or a change of layout.
      sliced = uses and all(o[0] in ("slice", "dynamic-slice", "fusion") for o in uses)
      total += min(size, sum(o[1] for o in uses)) if sliced else size
    if line.lstrip().startswith("ROOT") and not updates:
      total += size
  return total + sum(list(update[2].values())[1] for update in updates)


def _size(shapes: str) -> int:
  total = 0
  for kind, dimensions in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
    total += BYTES.get(kind, 0) * math.prod(int(d) for d in dimensions.split(",") if d)
  return total


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    moved, memory = traffic(program), program.memory_analysis()
    print(
      f"{name}: {moved / 1e9:.2f} GB, {moved / math.prod(shape):.1f} bytes per element, "
      f"{memory.temp_size_in_bytes / 1e9:.2f} GB of temporaries"
    )
    for source, size in operations(program).items():
      if size > 0.01 * moved:
        print(f"  {size / 1e9:6.3f} GB  {source[:150]}")


if __name__ == "__main__":
  main()
