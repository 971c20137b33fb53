"""Instruction bundles of the TPU attention kernels per visited block, from the compiler's listing.

    python -m benchmarks.attention_bundles            # all generations
    python -m benchmarks.attention_bundles v6e

A TPU core issues one bundle per cycle. The longest run of bundles without a branch is the work of
one block of 512 queries and 512 keys. `planning.replay.kernels` holds these figures. No TPU is
needed.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import tempfile
from collections.abc import Sequence
from functools import partial

KERNELS = ("fwd", "dq", "dkv")
# Channels of a head, and the window; None is causal without one.
CASES = ((128, None), (256, None), (128, 1024), (256, 1024))
_LENGTH = 2048


def longest_run(listing: str) -> int:
  """Returns the length of the longest run of bundles without a branch.

  Args:
    listing: text of a `*-final_bundles.txt`.
  """
  longest = current = 0
  for line in listing.splitlines():
    if start := re.match(r"\s*(?:0x[0-9a-f]+|\d+)\s+(LB|LH|LE|PB|PF|CT)?\s*:", line):
      current = 1 if start[1] == "LB" else current + 1
      longest = max(longest, current)
    if "sbr.rel" in line:  # also on the lines that continue a bundle
      current = 0
  return longest


def measure(generations: Sequence[str]) -> dict[str, dict[str, tuple[int, ...]]]:
  """{generation: {kernel: bundles for each of `CASES`}}.

  libtpu reads its flags once: call it before anything else in the process compiles for a TPU.
  """
  with tempfile.TemporaryDirectory() as name:
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={name} --xla_jf_dump_llo_text=true"
    from benchmarks import absent_tpu  # before JAX, and after the flags
    from planning.replay import kernels

    folder = pathlib.Path(name)
    return {
      generation: _measure(absent_tpu, generation, folder)
      for generation in absent_tpu.chosen(generations)
      if generation in kernels.SPLASH_BUNDLES
    }


def _measure(absent_tpu, generation: str, folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
  import jax
  import jax.numpy as jnp

  from kernels import platform
  from kernels.attention import splash

  def gradients(window, q, k, v, ids):
    def total(q, k, v):
      return jnp.sum(splash.attend(q, k, v, ids, ids, window, 0.1).astype(jnp.float32))

    return jax.value_and_grad(total, (0, 1, 2))(q, k, v)

  found: dict[str, list[int]] = {kernel: [] for kernel in KERNELS}
  for channels, window in CASES:
    head = jax.ShapeDtypeStruct((1, _LENGTH, 1, channels), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((1, _LENGTH), jnp.int32)
    with platform.targeting("tpu", absent_tpu.devices(generation)[0].device_kind):
      absent_tpu.compile_for(generation, partial(gradients, window), head, head, head, ids)
    bundles: dict[str, int] = dict.fromkeys(KERNELS, 0)
    for path in folder.iterdir():
      kernel = re.search(r"splash_m[hq]a_(fwd|dq|dkv)\w*\S*-final_bundles\.txt$", path.name)
      if kernel and "schedule-analysis" not in path.name:
        bundles[kernel[1]] = max(bundles[kernel[1]], longest_run(path.read_text()))
      path.unlink()  # the next program's have the same names
    for kernel in KERNELS:
      found[kernel].append(bundles[kernel])
  return {kernel: tuple(counts) for kernel, counts in found.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("generations", nargs="*")
  measured = measure(parser.parse_args().generations)
  print(f"bundles per block of 512 x 512, for (channels of a head, window) of {CASES}")
  for generation, kernels in measured.items():
    print(f"{generation:5}", "  ".join(f"{kernel} {counts}" for kernel, counts in kernels.items()))


if __name__ == "__main__":
  main()
