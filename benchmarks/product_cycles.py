"""How far the TPU compiler's estimates of matrix products are from the schedule of their code.

    python -m benchmarks.product_cycles v6e        # also v5e, v5p and tpu7x

Every product is compiled twice: the first time for the estimate that compiled programs carry, the
second time with libtpu's static profile of the generated code, which takes up to a minute each. The
median of profile over estimate is `product_share` of `planning.hardware.tpu`. No TPU is needed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# Rows, and the widths of the product.
_N, _K, _M = 2048, 2048, 4096
GENERATIONS = ("v5e", "v5p", "v6e", "tpu7x")


def cases():
  """Yields (name, function, shapes): products as forward and backward passes have them."""
  import jax
  import jax.numpy as jnp

  x, w, y = (_N, _K), (_K, _M), (_N, _M)
  yield "x w", lambda x, w: x @ w, (x, w)
  yield "x w in float32", lambda x, w: jnp.dot(x, w, preferred_element_type=jnp.float32), (x, w)
  yield "x' y", lambda x, y: x.T @ y, (x, y)
  yield "y w'", lambda y, w: y @ w.T, (y, w)
  yield (
    "silu(x w) u",
    lambda x, w, u: jax.nn.silu((x @ w).astype(jnp.float32)).astype(x.dtype) * u,
    (x, w, y),
  )
  yield "y w' u + v", lambda y, w, u, v: (y @ w.T) * u + v, (y, w, x, x)
  yield "(x s) w", lambda x, w, s: (x * s[:, None]) @ w, (x, w, (_N,))


def estimates(generation: str) -> dict[str, int]:
  """{case: cycles that the compiled program carries for its products}."""
  from benchmarks import absent_tpu  # first: it sets what JAX reads when it is imported

  jax, jnp = absent_tpu.jax, absent_tpu.jax.numpy
  from planning import plan

  device = jax.sharding.SingleDeviceSharding(absent_tpu.devices(generation)[0])
  found = {}
  for name, function, shapes in cases():
    placed = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=device) for shape in shapes]
    _, program = plan.compile_program(jax.jit(function).lower(*placed), "tpu")
    operations = program.computations[program.entry].values()
    found[name] = max(operation.cycles or 0 for operation in operations)
  return found


def _apart(generation: str, *options: str) -> dict[str, int]:
  """`estimates` in a process of its own: libtpu reads its flags once."""
  command = [sys.executable, "-m", "benchmarks.product_cycles", generation, *options]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
  lines = (line.rpartition("\t") for line in done.stdout.splitlines() if "\t" in line)
  return {name: int(cycles) for name, _, cycles in lines}


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("generation", choices=GENERATIONS)
  parser.add_argument("--only", choices=("estimate", "profile"), help="print one of both")
  options = parser.parse_args()
  if options.only:
    with tempfile.TemporaryDirectory() as folder:
      if options.only == "profile":
        # With a profile, compiled programs carry its cycles.
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_static_llo_profile_to={Path(folder)}"
      for name, cycles in estimates(options.generation).items():
        print(f"{name}\t{cycles}")
    return
  estimate = _apart(options.generation, "--only=estimate")
  profile = _apart(options.generation, "--only=profile")
  shares = {name: profile[name] / cycles for name, cycles in estimate.items()}
  print(f"{options.generation}: cycles of {_N} x {_K} x {_M}: estimate, profile, share")
  for name, share in shares.items():
    print(f"  {name:16} {estimate[name]:9,} {profile[name]:9,} {share:.2f}")
  print(f"  median share {statistics.median(shares.values()):.2f}")


if __name__ == "__main__":
  main()
