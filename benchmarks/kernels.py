"""Times, bytes and errors of recurrences, attention and matrix states, on whatever is here.

    python -m benchmarks.kernels                           # sizes that suit the backend
    python -m benchmarks.kernels --shape 8 2048 4096 --dtype bfloat16 --output runs/kernels.json
    python -m benchmarks.kernels --op attention delta_rule_head --heads_shape 8 4096 16 128

Per op, direction and implementation: milliseconds, the bytes that must move at least, the share of
the floor (these bytes over the bandwidth of memory measured in the same run; none where the data
lay in a cache), and the largest relative error against float64 among h, h_last and all gradients.
Attention, the delta rule and gated linear attention also have the share of what the device
multiplies (a product of square matrices, measured in the same run), and their time relative to the
form in plain XLA. An accelerator gets two shapes of recurrences: one with enough rows and channels
to fill it, and a long one with few. Without an accelerator it also prints the static table of the
TPU kernels (`benchmarks.tpu_bundles`), if the TPU compiler is installed.
"""

from __future__ import annotations

import argparse
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from base import paths
from benchmarks import huge_pages, matrix_cases
from benchmarks.kernel_cases import BYTES_PER_ELEMENT
from comparison.speed import bandwidth, timing
from comparison.speed.recurrences import FORWARD, OPS, bind, problem, runs, with_gradient
from training import json_files

# float64 on the CPU is slow and needs memory: errors are measured on a small problem.
ERROR_SHAPE = (2, 300, 256)
HEADS_ERROR_SHAPE = (1, 130, 2, 64)
# A matrix on whose product an accelerator, or a CPU, is as fast as it can be.
PRODUCT_SIZES = {True: 1024, False: 8192}


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


def measure(shape, dtype, repeats: int, ops=tuple(OPS)) -> list[dict]:
  """One record per recurrence, direction and implementation."""
  elements = int(np.prod(shape))
  scale = jnp.dtype(dtype).itemsize / 2  # BYTES_PER_ELEMENT is for bfloat16
  rate = bandwidth.measured(repeats)
  records = []
  for op in ops:
    seconds = timing.medians(timing.interleaved(runs(op, shape, dtype), repeats))
    for (name, direction), taken in seconds.items():
      moved = BYTES_PER_ELEMENT[f"{op}_forward"]
      if direction != FORWARD:
        moved += BYTES_PER_ELEMENT[f"{op}_backward"]
      moved *= scale * elements
      records.append(
        {
          "op": op,
          "implementation": name,
          "direction": direction,
          "milliseconds": round(1e3 * taken, 3),
          "bytes": int(moved),
          "fraction_of_floor": bandwidth.share(moved, rate, taken),
          "max_error": errors(op, name, dtype),
        }
      )
  return [{"op": "memory", "bytes_per_second": rate}, *records]


def measure_heads(shape, dtype, repeats: int, ops, product_size: int) -> list[dict]:
  """One record per operation on heads, direction and implementation, as `measure`."""
  rate = bandwidth.measured(repeats)
  products = matrix_cases.products_per_second(dtype, repeats, product_size)
  records = []
  for op in ops:
    case = matrix_cases.case(op, shape, dtype)
    seconds = timing.medians(timing.interleaved(matrix_cases.runs(case), repeats))
    for (name, direction), taken in seconds.items():
      moved = case.bytes_of(direction)
      flops = case.flops * (1 if direction == FORWARD else matrix_cases.PRODUCTS_OF_BOTH)
      records.append(
        {
          "op": op,
          "implementation": name,
          "direction": direction,
          "milliseconds": round(1e3 * taken, 3),
          "bytes": moved,
          "fraction_of_floor": bandwidth.share(moved, rate, taken),
          "fraction_of_products": flops / products / taken,
          "over_xla": taken / seconds[case.xla, direction],
          "max_error": matrix_cases.error(op, name, HEADS_ERROR_SHAPE, dtype),
        }
      )
  first = {"op": "device", "bytes_per_second": rate, "products_per_second": products}
  return [first, *records]


def show_heads(records: list[dict]) -> None:
  """A line per operation on heads, direction and implementation."""
  device, *records = records
  print(
    f"memory: {device['bytes_per_second'] / 1e9:.0f} GB/s, read and written; "
    f"products: {device['products_per_second'] / 1e12:.2f} TFLOP/s"
  )
  for r in records:
    share = r["fraction_of_floor"]
    floor = "in a cache" if share is None else f"{share:6.1%} of floor"
    print(
      f"{r['op']:30} {r['implementation']:13} {r['direction']:21} {r['milliseconds']:9.3f} ms "
      f"{floor:>15} {r['fraction_of_products']:6.1%} of products {r['over_xla']:5.2f} x XLA  "
      f"error {r['max_error']:.1e}"
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--shape", nargs=3, type=int, metavar=("B", "T", "R"))
  parser.add_argument("--heads_shape", nargs=4, type=int, metavar=("B", "T", "H", "K"))
  parser.add_argument("--op", nargs="+", choices=(*OPS, *matrix_cases.OPS), help="these alone")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"))
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--output", type=paths.json_argument, help="write the records as JSON")
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
  asked = options.op or (*OPS, *matrix_cases.OPS)
  recurrences = [op for op in OPS if op in asked]
  for shape in shapes if recurrences else ():
    print(f"{device}, {list(shape)} {dtype.name}, jax {jax.__version__}")
    records = measure(shape, dtype, options.repeats, recurrences)
    print(f"memory: {records[0]['bytes_per_second'] / 1e9:.0f} GB/s, read and written")
    for r in records[1:]:
      share = r["fraction_of_floor"]
      floor = "in a cache" if share is None else f"{share:6.1%} of floor"
      print(
        f"{r['op']:12} {r['implementation']:12} {r['direction']:21} {r['milliseconds']:9.3f} ms "
        f"{r['bytes'] / 1e6:8.1f} MB {floor:>15}  error {r['max_error']:.1e}"
      )
    result["measured"].append({"shape": shape, "records": records})
  on_heads = [op for op in matrix_cases.OPS if op in asked]
  if on_heads:
    shape = tuple(options.heads_shape or ((1, 1024, 4, 64) if on_cpu else (8, 4096, 16, 128)))
    print(f"{device}, {list(shape)} {dtype.name}, jax {jax.__version__}")
    records = measure_heads(shape, dtype, options.repeats, on_heads, PRODUCT_SIZES[on_cpu])
    show_heads(records)
    result["measured"].append({"shape": shape, "records": records})
  if on_cpu and not options.no_static and importlib.util.find_spec("libtpu"):
    from benchmarks import tpu_bundles

    names = ("v3", "v4", "v5e", "v5p", "v6e", "tpu7x")
    result["tpu_bundles"] = tpu_bundles.measure_apart(names)
    print(tpu_bundles.table(result["tpu_bundles"]))
  if options.output:
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json_files.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  main()
