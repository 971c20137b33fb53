"""Instruction bundles in the inner loops of the TPU kernels, read from the compiler's own listing.

    python -m benchmarks.tpu_bundles                 # a table for all generations
    python -m benchmarks.tpu_bundles v5e --json      # {generation: {kernel: bundles}}
    python -m benchmarks.tpu_bundles v5e --op delta_rule_head

A TPU core issues one bundle per cycle, so bundles per 1024 elements, beside the bundles that fit in
the time HBM needs for those elements, say whether a kernel can run at memory speed. The table also
has the bytes that a kernel moves per element and per token. No TPU is needed. The listing knows
nothing of waiting for memory: it ranks versions of a kernel and is no timing.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from training import json_files

SHAPE = (8, 2048, 4096)  # bfloat16, with resets
# Of [B, T, H, K], bfloat16, with resets: whole groups of heads, as any larger number has.
DELTA_SHAPE = (1, 4096, 4, 128)
OPS = ("rg_lru", "linear_scan", "delta_rule_head", "delta_rule_channel")


def innermost_loops(listing: str) -> list[int]:
  """The number of bundles in each loop inside a loop (the outer one is the grid).

  Args:
    listing: text of a `*-final_bundles.txt`: numbered bundles, `LB` where a loop body starts, one
      `>` per level of nesting, and a branch back to the region that names the loop.
  """
  bundles = []
  for line in listing.splitlines():
    match = re.match(r"\s*(?:0x[0-9a-f]+|\d+)\s+(LB|LH|LE|PB|PF|CT)?\s*:\s*(>*)(.*)", line)
    if match:
      bundles.append([match[1], len(match[2]), match[3]])
    elif bundles:
      bundles[-1][2] += line
  loops = []
  for start, (tag, depth, text) in enumerate(bundles):
    if tag != "LB" or depth < 2:
      continue
    regions = set(re.findall(r"Start region (\d+)", text))
    for end in range(start, len(bundles)):
      code = re.sub(r"/\*.*?\*/", "", bundles[end][2])
      branch = re.search(r"sbr\.rel \([^)]*\) target = \$region(\d+)", code)
      if branch and branch[1] in regions:
        loops.append(end - start + 1 + 4)  # and four delay slots
        break
  return loops


def measure(generations: Sequence[str], ops: Sequence[str] = OPS) -> dict[str, dict[str, float]]:
  """{generation: bundles per 1024 elements of each kernel}; of all if none is named.

  libtpu reads its flags once: call it before anything else in the process compiles for a TPU.
  """
  with tempfile.TemporaryDirectory() as name:
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={name} --xla_jf_dump_llo_text=true"
    from benchmarks import absent_tpu  # before JAX, and after the flags

    folder = pathlib.Path(name)
    names = absent_tpu.chosen(generations)
    return {name: _measure(absent_tpu, name, ops, folder) for name in names}


def _measure(absent_tpu, generation: str, ops: Sequence[str], folder: pathlib.Path):
  """{kernel: bundles per 1024 elements} for one generation."""
  result = {}
  for op in ops:
    if op.startswith("delta_rule") and generation == "v3":
      continue  # it has no such kernel
    compiled = _compile(absent_tpu, generation, op)
    listings = {}
    for path in folder.iterdir():
      if path.name.endswith("-final_bundles.txt"):
        listings[path.name] = path.read_text()
      path.unlink()  # the next generation's have the same names
    for kernel, elements in compiled.items():
      # XLA's name of a call starts with the transformations it came from; the last listing is the
      # one.
      texts = [t for n, t in listings.items() if kernel in n and "schedule-analysis" not in n]
      loops = [innermost_loops(t) for t in texts]
      # The delta rule's backward kernel goes through a block twice.
      bundles = max(sum(found) if op.startswith("delta_rule") else max(found) for found in loops)
      result[kernel] = round(bundles / (elements / 1024), 2)
  return result


def _compile(absent_tpu, generation: str, op: str) -> dict[str, int]:
  """Compiles an op with its gradient; the elements of one turn of each kernel's loops."""
  import jax.numpy as jnp

  from benchmarks import kernel_cases as cases
  from kernels.delta_tpu import blocks as delta_blocks
  from kernels.scan_tpu import blocks as pallas_tpu_blocks

  if op.startswith("delta_rule"):
    decay = op.rpartition("_")[2]
    given = cases.delta_arguments(DELTA_SHAPE, decay, jnp.bfloat16)
    absent_tpu.compile_for(generation, absent_tpu.traced(_op("delta_rule", False), *given), *given)
    _, length, heads, channels = DELTA_SHAPE
    plan = delta_blocks.choose_plan(
      heads, channels, channels, length, 2, chunk=64, by_channel=decay == "channel"
    )
    assert plan is not None  # Heads of 128 channels have room.
    elements = plan.group * plan.chunk * channels
    return {f"{op}_{direction}": elements for direction in ("forward", "backward")}
  arguments, forward_arrays, backward_arrays = {
    "rg_lru": (cases.rg_lru_arguments, 4, 8),
    "linear_scan": (cases.linear_scan_arguments, 3, 5),
  }[op]
  native = absent_tpu.GENERATIONS[generation].native_math
  given = (*arguments(SHAPE, jnp.bfloat16), *cases.cotangents(SHAPE, jnp.bfloat16))
  function = _op(op, native if op == "rg_lru" else False)
  absent_tpu.compile_for(generation, absent_tpu.traced(function, *given), *given)
  plan = pallas_tpu_blocks.plan(
    SHAPE, 2, forward_arrays=forward_arrays, backward_arrays=backward_arrays
  )
  return {
    f"{op}_{direction}": blocks.slabs * blocks.chunk * 128
    for direction, blocks in zip(("forward", "backward"), plan, strict=True)
  }


@functools.cache
def _op(name: str, native: bool):
  """An op with its gradient: one function for all generations that compute alike."""
  from comparison.speed.recurrences import with_gradient
  from kernels.delta_rule import pallas_tpu as delta_rule_tpu
  from kernels.linear_scan import pallas_tpu as linear_scan_tpu
  from kernels.rg_lru import pallas_tpu as rg_lru_tpu

  if name == "delta_rule":
    return with_gradient(functools.partial(delta_rule_tpu.fused, last=True, chunk=64))
  if name == "linear_scan":
    return with_gradient(linear_scan_tpu.scan)
  return with_gradient(functools.partial(rg_lru_tpu.fused, native_math=native))


def measure_apart(generations: Sequence[str]) -> dict[str, dict[str, float]]:
  """`measure` in a process of its own."""
  command = [sys.executable, "-m", "benchmarks.tpu_bundles", *generations, "--json"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
  return json.loads(done.stdout)


def table(measured: dict[str, dict[str, float]]) -> str:
  """Bundles per 1024 elements / bundles in the time of the HBM traffic, a row per kernel.

  Before them are the HBM bytes per element, and per token of a whole layer at `SHAPE`'s width, or
  of one head at `DELTA_SHAPE`'s.
  """
  from benchmarks import absent_tpu
  from benchmarks.kernel_cases import BYTES_PER_ELEMENT

  widths = {"delta_rule": (DELTA_SHAPE[3], "head"), "": (SHAPE[2], "layer")}
  head = f"{'bundles / HBM budget':30}{'HBM bytes per element, token':>30}"
  lines = [head + "".join(f"{g:>14}" for g in measured)]
  kernels = list(dict.fromkeys(kernel for values in measured.values() for kernel in values))
  for kernel in kernels:
    cells = []
    for generation, values in measured.items():
      budget = absent_tpu.GENERATIONS[generation].bundles_at_floor(BYTES_PER_ELEMENT[kernel])
      cells.append(f"{values[kernel]:6.1f} /{budget:5.1f}" if kernel in values else "-")
    width, of = next(found for name, found in widths.items() if kernel.startswith(name))
    per_element = BYTES_PER_ELEMENT[kernel]
    moved = f"{per_element}, {per_element * width:,} a {of}"
    lines.append(f"{kernel:30}{moved:>30}" + "".join(f"{c:>14}" for c in cells))
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("generations", nargs="*")
  parser.add_argument("--op", nargs="+", choices=OPS, default=OPS, help="only these")
  parser.add_argument("--json", action="store_true", help="print JSON, not a table")
  options = parser.parse_args()
  measured = measure(options.generations, options.op)
  print(json_files.dumps(measured, indent=2) if options.json else table(measured))


if __name__ == "__main__":
  main()
