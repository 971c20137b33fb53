"""One of several processes whose devices are shuffled in the mesh: do their batches make the whole
one?

Usage: python -m tests.parallel.shuffled_devices ROWS_FOLDER PORT COUNT INDEX
"""

from __future__ import annotations

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from data import loader
from data.rows import RowFiles
from parallel import coordination
from parallel.mesh import AXES
from parallel.rules import Rules
from parallel.sharding_plan import ShardingPlan

BATCH_SIZE = 16
# (data, seq, model)
SHAPES = [(8, 1, 1), (4, 1, 2), (2, 2, 2), (1, 8, 1)]


def main(folder: str, port: str, count: int, index: int) -> None:
  jax.config.update("jax_num_cpu_devices", 2)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # As the commands join, so that the end of one process ends all.
  coordination.join(f"localhost:{port}", count, index, seconds=120)
  rows = RowFiles(folder)
  whole_batches = loader.batches(rows, BATCH_SIZE, seed=7)
  expected = [next(whole_batches) for _ in range(2)]
  pieces = 0
  for number, shape in enumerate(SHAPES):
    devices = np.random.default_rng(number).permutation(np.array(jax.devices(), object))
    mesh = Mesh(devices.reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    sharding_plan = ShardingPlan(mesh, Rules(), 0, ())
    held = sharding_plan.rows_here(BATCH_SIZE, rows.sequence_length)
    pieces += int(np.any(np.diff(held) > 1))
    batches = loader.batches(rows, BATCH_SIZE, seed=7, slots=held.tolist())
    copy = jax.jit(lambda batch: batch, out_shardings=sharding_plan.everywhere)
    for batch in expected:
      # Training reads a process's own rows, a held-out score all of them.
      for given in (next(batches), batch):
        found = copy(sharding_plan.place(given, BATCH_SIZE))
        for name, array in batch.items():
          np.testing.assert_array_equal(np.asarray(found[name]), array)
    batches.close()
  whole_batches.close()
  # Else the test would show nothing.
  assert multihost_utils.process_allgather(np.int32(pieces)).sum() > 0
  print("equal", flush=True)


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
