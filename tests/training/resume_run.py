"""A small real run in a separate process, for tests that kill it.

Usage: python tests/training/resume_run.py RUN_DIR STEPS CACHE_DIR
"""

import hashlib
import sys
from pathlib import Path

import jax
import numpy as np

from data.loader import batch_of_rows
from models.accounting import list_parameters
from parallel.sharding_plan import on_one_device
from tests.small_models import VOCAB_SIZE, build
from training import loop, optimizer, step


class Sequences:
  """Arithmetic sequences modulo the vocabulary, packed two to a row, of which the second goes on in
  the next batch in half of the rows; batch n depends on n alone."""

  def __init__(self):
    self._next = 0

  def __next__(self):
    (before, _), (tokens, ids) = self._rows(self._next - 1), self._rows(self._next)
    self._next += 1
    goes_on = np.arange(4) % 2 == self._next % 2
    return batch_of_rows(tokens, ids, bos_id=0, before=np.where(goes_on, before[:, -1], -1))

  def _rows(self, number):
    random = np.random.default_rng(number % 2**32)
    steps = random.integers(1, 5, (4, 1))
    tokens = (np.arange(32) * steps + random.integers(0, VOCAB_SIZE, (4, 1))) % VOCAB_SIZE
    return tokens, np.where(np.arange(32) < random.integers(8, 24, (4, 1)), 1, 2)

  def state(self):
    return {"next_index": self._next}

  def restore(self, state):
    self._next = state["next_index"]


def main(run_dir: Path, steps: int) -> None:
  schedule = optimizer.warmup_cosine(peak=3e-3, steps=steps, warmup_steps=5)
  model = build(
    "hawk", depth=2
  )  # to a run a model is arrays: this one is quickly traced in every life
  summary = loop.train(
    model=model,
    sharding_plan=on_one_device(list_parameters(model)),
    optimizer=optimizer.AdamW(learning_rate=schedule).transformation(),
    learning_rate=schedule,
    batches=Sequences(),
    batch_size=4,
    options=loop.LoopOptions(
      steps=steps,
      log_every=7,
      evaluate_every=25,
      checkpoint_every=10,
      step=step.StepOptions(carry_state=True),
    ),
    run_dir=run_dir,
    seed=0,
    bytes_per_token=1.0,
    evaluate=lambda params: {"heldout_loss": float(np.sum(jax.tree.leaves(params)[0]))},
  )
  leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(summary.state)]
  print(summary.step, hashlib.sha256(b"".join(leaves)).hexdigest(), flush=True)


if __name__ == "__main__":
  # Restarts need not compile again.
  jax.config.update("jax_compilation_cache_dir", sys.argv[3])
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  main(Path(sys.argv[1]), int(sys.argv[2]))
