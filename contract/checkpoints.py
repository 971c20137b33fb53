"""Checks that a restored train state equals the saved one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import optax

from contract.finding import Finding, path_of, stated
from contract.subject import Subject
from training import checkpoint
from training import step as step_lib
from training.optimizer import AdamW

OPTIMIZER = AdamW(learning_rate=optax.constant_schedule(1e-3)).transformation()


def check(subject: Subject) -> Iterator[Finding]:
  """Saves and restores a train state: it must be equal bit for bit."""
  options = step_lib.StepOptions()
  abstract = jax.eval_shape(
    lambda: step_lib.initial_state(subject.model, OPTIMIZER, options, seed=0)
  )
  random = np.random.default_rng(6)
  filled = jax.tree.map(
    lambda x: jax.device_put(np.asarray(random.integers(0, 100, x.shape), x.dtype)), abstract
  )
  state = filled._replace(params=subject.params)
  with tempfile.TemporaryDirectory() as folder:
    saved = checkpoint.Checkpoints(Path(folder))
    saved.save(state, {"batches": 7})
    saved.close()
    restored = checkpoint.Checkpoints(Path(folder)).restore(checkpoint.abstract_like(abstract))
  if restored is None:
    yield stated("checkpoint round trip", False, "nothing was restored")
    return
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(restored.state), strict=True
  )
  wrong = [
    path_of(path) for (path, a), b in pairs if a.dtype != b.dtype or not np.array_equal(a, b)
  ]
  says = f"{len(jax.tree.leaves(state))} arrays, parameters and optimizer state"
  yield stated("checkpoint round trip", not wrong, says, wrong[0] if wrong else "")
