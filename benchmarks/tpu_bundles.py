"""Instruction bundles in the inner loops of the TPU kernels, read from the compiler's own listing.

    python -m benchmarks.tpu_bundles                 # a table for all generations
    python -m benchmarks.tpu_bundles v5e --json      # {generation: {kernel: bundles}}

A TPU core issues one bundle per cycle, so bundles per 1024 elements, beside the bundles that fit in
the time HBM needs for those elements, say whether a kernel can run at memory speed. No TPU is
needed. The listing knows nothing of waiting for memory: it ranks versions of a kernel and is no
timing.
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
KERNELS = ("rg_lru_forward", "rg_lru_backward", "linear_scan_forward", "linear_scan_backward")


def innermost_loop(listing: str) -> int:
  """The number of bundles in the longest loop inside a loop (the outer one is the grid).

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
  longest = 0
  for start, (tag, depth, text) in enumerate(bundles):
    if tag != "LB" or depth < 2:
      continue
    regions = set(re.findall(r"Start region (\d+)", text))
    for end in range(start, len(bundles)):
      code = re.sub(r"/\*.*?\*/", "", bundles[end][2])
      branch = re.search(r"sbr\.rel \([^)]*\) target = \$region(\d+)", code)
      if branch and branch[1] in regions:
        longest = max(longest, end - start + 1 + 4)  # and four delay slots
        break
  return longest


def measure(generations: Sequence[str]) -> dict[str, dict[str, float]]:
  """{generation: bundles per 1024 elements of each kernel}; of all if none is named.

  libtpu reads its flags once: call it before anything else in the process compiles for a TPU.
  """
  with tempfile.TemporaryDirectory() as name:
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={name} --xla_jf_dump_llo_text=true"
    from benchmarks import absent_tpu  # before JAX, and after the flags

    folder = pathlib.Path(name)
    names = absent_tpu.chosen(generations)
    return {generation: _measure(absent_tpu, generation, folder) for generation in names}


def _measure(absent_tpu, generation: str, folder: pathlib.Path) -> dict[str, float]:
  compiled = _compile(absent_tpu, generation)
  listings = {}
  for path in folder.iterdir():
    if path.name.endswith("-final_bundles.txt"):
      listings[path.name] = path.read_text()
    path.unlink()  # the next generation's have the same names
  result = {}
  for kernel, slabs, chunk in compiled:
    # XLA's name of a call starts with the transformations it came from; the last listing is the
    # one.
    texts = [t for n, t in listings.items() if kernel in n and "schedule-analysis" not in n]
    bundles = max(innermost_loop(t) for t in texts)
    result[kernel] = round(bundles / (slabs * chunk * 128 / 1024), 2)
  return result


def _compile(absent_tpu, generation: str) -> list[tuple[str, int, int]]:
  """Compiles all kernels; (name, slabs, chunk) of each."""
  import jax.numpy as jnp

  from benchmarks import kernel_cases as cases
  from kernels.scan_tpu import blocks as pallas_tpu_blocks

  native = absent_tpu.GENERATIONS[generation].native_math
  compiled = []
  for name, arguments, arrays in (
    ("rg_lru", cases.rg_lru_arguments, (4, 8)),
    ("linear_scan", cases.linear_scan_arguments, (3, 5)),
  ):
    given = (*arguments(SHAPE, jnp.bfloat16), *cases.cotangents(SHAPE, jnp.bfloat16))
    function = _op(name, native if name == "rg_lru" else False)
    absent_tpu.compile_for(generation, absent_tpu.traced(function, *given), *given)
    plan = pallas_tpu_blocks.plan(SHAPE, 2, forward_arrays=arrays[0], backward_arrays=arrays[1])
    for direction in ("forward", "backward"):
      blocks = getattr(plan, direction)
      compiled.append((f"{name}_{direction}", blocks.slabs, blocks.chunk))
  return compiled


@functools.cache
def _op(name: str, native: bool):
  """An op with its gradient: one function for all generations that compute alike."""
  from comparison.speed.recurrences import with_gradient
  from kernels.linear_scan import pallas_tpu as linear_scan_tpu
  from kernels.rg_lru import pallas_tpu as rg_lru_tpu

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
  """Bundles per 1024 elements / bundles in the time of the HBM traffic, a row per kernel."""
  from benchmarks import absent_tpu
  from benchmarks.kernel_cases import BYTES_PER_ELEMENT

  lines = [f"{'bundles / HBM budget':22}" + "".join(f"{g:>14}" for g in measured)]
  for kernel in KERNELS:
    cells = []
    for generation, values in measured.items():
      budget = absent_tpu.GENERATIONS[generation].bundles_at_floor(BYTES_PER_ELEMENT[kernel])
      cells.append(f"{values[kernel]:6.1f} /{budget:5.1f}")
    lines.append(f"{kernel:22}" + "".join(f"{c:>14}" for c in cells))
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("generations", nargs="*")
  parser.add_argument("--json", action="store_true", help="print JSON, not a table")
  options = parser.parse_args()
  measured = measure(options.generations)
  print(json_files.dumps(measured, indent=2) if options.json else table(measured))


if __name__ == "__main__":
  main()
