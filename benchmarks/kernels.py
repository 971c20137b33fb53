"""Times, bytes and errors of the recurrences, on whatever is here.

    python -m benchmarks.kernels                           # sizes that suit the backend
    python -m benchmarks.kernels --shape 8 2048 4096 --dtype bfloat16 --output runs/kernels.json

Per op, direction and implementation: milliseconds, the bytes that must move at least, the share of the
floor (these bytes over the bandwidth of a copy measured in the same run), and the largest relative error
against float64 among h, h_last and all gradients. An accelerator gets two shapes: one with enough rows
and channels to fill it, and a long one with few. Without an accelerator it also prints the static table of the TPU
kernels (`benchmarks.tpu_bundles`), if the TPU compiler is installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import huge_pages
from benchmarks.kernel_cases import BYTES_PER_ELEMENT, with_gradient
from kernels import platform
from kernels.linear_scan import IMPLEMENTATIONS as LINEAR_SCANS
from kernels.linear_scan import linear_scan
from kernels.rg_lru import IMPLEMENTATIONS as RG_LRUS
from kernels.rg_lru import rg_lru

OPS = {"rg_lru": (rg_lru, RG_LRUS), "linear_scan": (linear_scan, LINEAR_SCANS)}
# float64 on the CPU is slow and needs memory: errors are measured on a small problem.
ERROR_SHAPE = (2, 300, 256)


def problem(op: str, shape, dtype, seed=0):
  """(differentiable arguments, reset, cotangents) with decays between 0.9 and 1 - 1e-6."""
  rng = np.random.default_rng(seed)
  batch, steps, width = shape

  def normal(*size, dtype=jnp.float32):
    return jnp.asarray(rng.standard_normal(size, np.float32)).astype(dtype)

  log_decay = -(10.0 ** rng.uniform(-6, -1, width))
  log_decay = jnp.asarray(log_decay, jnp.float32)
  x, gate_a, gate_x = (normal(*shape, dtype=dtype) for _ in range(3))
  h0 = normal(batch, width)
  if op == "rg_lru":
    arguments = (x, gate_a, gate_x, log_decay, h0)
  else:
    arguments = (x, (jax.nn.sigmoid(gate_a.astype(jnp.float32)) * log_decay).astype(dtype), h0)
  reset = jnp.asarray(rng.uniform(size=(batch, steps)) < 0.01)
  return arguments, reset, (normal(*shape, dtype=dtype), normal(batch, width))


def bind(op: str, implementation: str):
  """op(*arguments, reset) with a named implementation."""
  function, _ = OPS[op]
  return lambda *a: function(*a[:-1], reset=a[-1], implementation=implementation)


def milliseconds(functions: dict, repeats: int) -> dict[str, float]:
  """Median over interleaved rounds, so that a busy moment hits all alike."""
  times = {name: [] for name in functions}
  for run in functions.values():
    jax.block_until_ready(run())
  for _ in range(repeats):
    for name, run in functions.items():
      start = time.perf_counter()
      jax.block_until_ready(run())
      times[name].append(1e3 * (time.perf_counter() - start))
  return {name: statistics.median(values) for name, values in times.items()}


def errors(op: str, implementation: str, dtype) -> float:
  """The largest relative error (Euclidean norm) over h, h_last and all gradients."""
  arguments, reset, cotangents = problem(op, ERROR_SHAPE, dtype)
  got = jax.jit(with_gradient(bind(op, implementation)))(*arguments, reset, *cotangents)
  with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
    wide = [np.asarray(a, np.float64) for a in (*arguments, *cotangents)]
    n = len(arguments)
    expected = jax.jit(with_gradient(bind(op, "reference")))(
      *map(jnp.asarray, wide[:n]), jnp.asarray(np.asarray(reset)), *map(jnp.asarray, wide[n:])
    )
  pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
  pairs = [(np.asarray(a).astype(np.float64), np.asarray(b)) for a, b in pairs]
  return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def available(op: str) -> list[str]:
  names = []
  for name in OPS[op][1]:
    try:
      platform.resolve(op, name, OPS[op][1])
    except ValueError:
      continue
    names.append(name)
  return names


def measure(shape, dtype, repeats: int) -> list[dict]:
  """One record per op, direction and implementation."""
  elements = int(np.prod(shape))
  scale = jnp.dtype(dtype).itemsize / 2  # BYTES_PER_ELEMENT is for bfloat16
  source = jnp.ones(shape, dtype)
  copy = jax.jit(lambda a: a * 2)
  copy_ms = milliseconds({"copy": lambda: copy(source)}, repeats)["copy"]
  bandwidth = 2 * source.nbytes / copy_ms  # bytes per millisecond
  records = []
  for op in OPS:
    arguments, reset, cotangents = problem(op, shape, dtype)
    functions = {}
    for name in available(op):
      forward = jax.jit(bind(op, name))
      both = jax.jit(with_gradient(bind(op, name)))
      functions[name, "forward"] = functools.partial(forward, *arguments, reset)
      functions[name, "forward and backward"] = functools.partial(
        both, *arguments, reset, *cotangents
      )
    for (name, direction), ms in milliseconds(functions, repeats).items():
      moved = BYTES_PER_ELEMENT[f"{op}_forward"]
      if direction != "forward":
        moved += BYTES_PER_ELEMENT[f"{op}_backward"]
      moved *= scale * elements
      records.append(
        {
          "op": op,
          "implementation": name,
          "direction": direction,
          "milliseconds": round(ms, 3),
          "bytes": int(moved),
          "fraction_of_floor": round(moved / bandwidth / ms, 3),
          "max_error": errors(op, name, dtype),
        }
      )
  return [{"op": "copy", "milliseconds": round(copy_ms, 3), "bytes": 2 * source.nbytes}, *records]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--shape", nargs=3, type=int, metavar=("B", "T", "R"))
  parser.add_argument("--dtype", choices=("float32", "bfloat16"))
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--output", type=pathlib.Path, help="write the records as JSON")
  parser.add_argument("--no-static", action="store_true", help="leave out the TPU compiler's table")
  options = parser.parse_args()
  on_cpu = jax.default_backend() == "cpu"
  if on_cpu:
    huge_pages.restart_with("benchmarks.kernels")
  shapes = [(4, 2048, 1024)] if on_cpu else [(8, 2048, 4096), (2, 32768, 2560)]
  shapes = [tuple(options.shape)] if options.shape else shapes
  dtype = jnp.dtype(options.dtype or ("float32" if on_cpu else "bfloat16"))
  device = jax.devices()[0].device_kind
  result = {"device": device, "jax": jax.__version__, "dtype": dtype.name, "measured": []}
  for shape in shapes:
    print(f"{device}, {list(shape)} {dtype.name}, jax {jax.__version__}")
    records = measure(shape, dtype, options.repeats)
    gigabytes = records[0]["bytes"] / records[0]["milliseconds"] / 1e6
    print(f"copy: {records[0]['milliseconds']} ms, {gigabytes:.0f} GB/s")
    for r in records[1:]:
      print(
        f"{r['op']:12} {r['implementation']:12} {r['direction']:21} {r['milliseconds']:9.3f} ms "
        f"{r['bytes'] / 1e6:8.1f} MB {r['fraction_of_floor']:6.1%} of floor  error {r['max_error']:.1e}"
      )
    result["measured"].append({"shape": shape, "records": records})
  if on_cpu and not options.no_static and importlib.util.find_spec("libtpu"):
    from benchmarks import tpu_bundles

    names = ("v3", "v4", "v5e", "v5p", "v6e", "tpu7x")
    result["tpu_bundles"] = {name: tpu_bundles.measure_apart(name) for name in names}
    print(tpu_bundles.table(result["tpu_bundles"]))
  if options.output:
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  main()
