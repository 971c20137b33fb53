"""Memory and speed of training steps on one long row: `python -m benchmarks.long_rows`.

Each length trains the quickstart's Griffin on a row of random bytes, in a process of its own or, to
compare core time on a busy machine, in turns.
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


class Row:
  """Steps on one row of `length` tokens in chunks of `chunk`."""

  def __init__(self, length: int, chunk: int):
    """Compiles the step, and makes the train state and the row."""
    changes = [f"--gin.SEQUENCE_LENGTH={length}", f"--gin.TIME_CHUNK={chunk}"]
    built = experiment.build(experiment.load(FILES, changes))
    plan = on_one_device(list_parameters(built.model))
    optimizer = built.optimizer.transformation()
    # flax modules are hashable by their fields, which their type does not say.
    model = cast(Hashable, built.model)
    _, create, take_step = programs.make(model, optimizer, built.options.step, plan)
    tokens = np.random.default_rng(0).integers(0, 256, (1, length))
    self._batch = jax.device_put(batch_of_rows(tokens, np.ones_like(tokens), bos_id=0), plan.batch)
    self._state = create(np.uint32(0), {})
    self._step = take_step.lower(self._state, self._batch).compile()
    memory = self._step.memory_analysis()
    assert memory is not None
    self.length = length
    self.temporary_bytes = memory.temp_size_in_bytes
    self.state_bytes = -(-length // chunk) * tree_bytes(
      jax.eval_shape(lambda: built.model.initial_state(1, length))
    )
    self.wall: list[float] = []
    self.cpu: list[float] = []
    self.loss = 0.0

  def step(self) -> None:
    """Takes a step, and notes its seconds of the clock and of the cores."""
    began, used = time.perf_counter(), time.process_time()
    self._state, metrics = self._step(self._state, self._batch)
    self.loss = float(metrics["loss"])
    self.wall.append(time.perf_counter() - began)
    self.cpu.append(time.process_time() - used)


def measure(length: int, chunk: int, steps: int) -> None:
  """Prints a line about steps on one row of `length` tokens in chunks of `chunk`."""
  row = Row(length, chunk)
  for _ in range(steps):
    row.step()
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(
    f"{length:,} tokens, chunks of {chunk:,}: temporary arrays "
    f"{row.temporary_bytes / 1e6:,.0f} MB, of which states {row.state_bytes / 1e6:,.0f} MB; peak "
    f"memory {peak / 1e9:.2f} GB; {length / min(row.wall):,.0f} tokens/s; "
    f"{1e6 * min(row.cpu) / length:,.0f} us of a core per token; loss {row.loss:.3f}",
    flush=True,
  )


def in_turns(lengths: list[int], chunk: int, rounds: int) -> None:
  """Prints the core time per token of rows that take steps in turns, after one step each.

  Short rows take more steps a round, up to a sixteenth of the longest row's tokens.
  """
  rows = [Row(length, chunk) for length in lengths]
  some = max(lengths) // 16
  for row in rows:
    if row.length <= some:
      row.step()
      row.cpu.clear()
  for _ in range(rounds):
    for row in rows:
      for _ in range(max(1, min(8, some // row.length))):
        row.step()
  for row in rows:
    each = 1e6 * np.array(row.cpu) / row.length
    print(
      f"{row.length:,} tokens, chunks of {chunk:,}: median {np.median(each):,.0f}, least "
      f"{each.min():,.0f} us of a core per token in {len(each)} steps",
      flush=True,
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--lengths", type=int, nargs="+", default=[512, 4096, 32768, 131072])
  parser.add_argument("--chunk", type=int, default=512, help="tokens of a chunk")
  parser.add_argument("--steps", type=int, default=3, help="steps of which the fastest counts")
  parser.add_argument("--here", action="store_true", help="measure in this process, one length")
  parser.add_argument(
    "--in_turns", action="store_true", help="core time in one process; --steps are the rounds"
  )
  options = parser.parse_args()
  if options.in_turns:
    in_turns(options.lengths, options.chunk, options.steps)
    return
  if options.here:
    measure(options.lengths[0], options.chunk, options.steps)
    return
  for length in options.lengths:
    command = [sys.executable, "-m", "benchmarks.long_rows", "--here", f"--lengths={length}"]
    command += [f"--chunk={options.chunk}", f"--steps={options.steps}"]
    subprocess.run(command, check=True)


if __name__ == "__main__":
  main()
