"""Memory and speed of training steps on one long row: `python -m benchmarks.long_rows`.

Each length is a process of its own, which trains the quickstart's Griffin on a row of random bytes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Hashable
from typing import cast

import jax
import numpy as np

from data.loader import batch_of_rows
from experiment import experiment
from models.accounting import list_parameters, tree_bytes
from parallel.sharding_plan import on_one_device
from training import programs

FILES = ["gin/runs/griffin_quickstart.gin", "gin/train/time_chunks.gin"]


def measure(length: int, chunk: int, steps: int) -> None:
  """Prints a line about steps on one row of `length` tokens in chunks of `chunk`."""
  changes = [f"--gin.SEQUENCE_LENGTH={length}", f"--gin.TIME_CHUNK={chunk}"]
  built = experiment.build(experiment.load(FILES, changes))
  plan = on_one_device(list_parameters(built.model))
  optimizer = built.optimizer.transformation()
  # flax modules are hashable by their fields, which their type does not say.
  model = cast(Hashable, built.model)
  _, create, take_step = programs.make(model, optimizer, built.options.step, plan)
  tokens = np.random.default_rng(0).integers(0, 256, (1, length))
  batch = jax.device_put(batch_of_rows(tokens, np.ones_like(tokens), bos_id=0), plan.batch)
  state = create(np.uint32(0), {})
  compiled = take_step.lower(state, batch).compile()
  memory = compiled.memory_analysis()
  assert memory is not None
  states = -(-length // chunk) * tree_bytes(
    jax.eval_shape(lambda: built.model.initial_state(1, length))
  )
  wall, cpu = [], []
  for _ in range(steps):
    began, used = time.perf_counter(), time.process_time()
    state, metrics = compiled(state, batch)
    loss = float(metrics["loss"])
    wall.append(time.perf_counter() - began)
    cpu.append(time.process_time() - used)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(
    f"{length:,} tokens, chunks of {chunk:,}: temporary arrays "
    f"{memory.temp_size_in_bytes / 1e6:,.0f} MB, of which states {states / 1e6:,.0f} MB; peak "
    f"memory {peak / 1e9:.2f} GB; {length / min(wall):,.0f} tokens/s; "
    f"{1e6 * min(cpu) / length:,.0f} us of a core per token; loss {loss:.3f}",
    flush=True,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--lengths", type=int, nargs="+", default=[512, 4096, 32768, 131072])
  parser.add_argument("--chunk", type=int, default=512, help="tokens of a chunk")
  parser.add_argument("--steps", type=int, default=3, help="steps of which the fastest counts")
  parser.add_argument("--here", action="store_true", help="measure in this process, one length")
  options = parser.parse_args()
  if options.here:
    measure(options.lengths[0], options.chunk, options.steps)
    return
  for length in options.lengths:
    command = [sys.executable, "-m", "benchmarks.long_rows", "--here", f"--lengths={length}"]
    command += [f"--chunk={options.chunk}", f"--steps={options.steps}"]
    subprocess.run(command, check=True)


if __name__ == "__main__":
  main()
