"""HBM traffic of the delta rule with its gradient, as the TPU compiler lays it out.

    python -m benchmarks.delta_rule_traffic                       # v5e, both forms
    python -m benchmarks.delta_rule_traffic v6e --decay channel --implementation pallas_tpu --json

No TPU is needed. Bytes that all operations read and write in HBM, of the values and the gradients
of [8, 4096, 16 heads, 128] in bfloat16; a loop counts as often as it runs, and a Pallas kernel
moves every array once. The layouts of arguments and results are the compiler's choice, as in a
model, whose other operations write and read them.
"""

from __future__ import annotations

import argparse
import functools
import json

from benchmarks import absent_tpu
from benchmarks.kernel_cases import delta_arguments

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from comparison.speed.recurrences import with_gradient
from kernels.delta_rule import chunked, pallas_tpu
from planning.hlo import bytes_accessed
from planning.hlo import text as hlo

SHAPE = (8, 4096, 16, 128)
CHUNK = 64
IMPLEMENTATIONS = {"chunked": chunked.delta_rule, "pallas_tpu": pallas_tpu.delta_rule}


def traffic(generation: str, decay: str, implementation: str) -> int:
  """Bytes in HBM that values and gradients move.

  Args:
    generation: a name of `absent_tpu.GENERATIONS`.
    decay: 'head' or 'channel'.
    implementation: a name of IMPLEMENTATIONS.
  """
  run = IMPLEMENTATIONS[implementation]
  sharding = NamedSharding(Mesh(np.array(absent_tpu.devices(generation)[:1]), ("device",)), P())
  arguments = [
    jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
    for a in delta_arguments(SHAPE, decay, jnp.bfloat16)
  ]
  function = with_gradient(functools.partial(run, last=True, chunk=CHUNK))
  free = Format(Layout.AUTO, sharding)
  compiled = jax.jit(function, in_shardings=free, out_shardings=free).lower(*arguments).compile()
  return bytes_accessed.traffic(hlo.HloProgram(compiled.as_text() or "")).total


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("generation", nargs="?", default="v5e", choices=absent_tpu.GENERATIONS)
  parser.add_argument("--decay", default="head", choices=("head", "channel"))
  parser.add_argument("--implementation", nargs="+", choices=IMPLEMENTATIONS)
  parser.add_argument("--json", action="store_true", help="print {implementation: bytes} only")
  options = parser.parse_args()
  names = options.implementation or tuple(IMPLEMENTATIONS)
  moved = {name: traffic(options.generation, options.decay, name) for name in names}
  if options.json:
    print(json.dumps(moved))
    return
  batch, length, heads, _ = SHAPE
  for name, size in moved.items():
    per_token = size / (batch * length)
    print(f"{name}: {size / 1e9:.2f} GB, {per_token / heads:,.0f} bytes per token and head")


if __name__ == "__main__":
  main()
