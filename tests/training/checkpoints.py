"""Checkpoints that tests save, and forged ones."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from training import checkpoint, checksum
from training.checkpoint import Checkpoints
from training.step import SpikeDetector, TrainState


def make_state(step: int, **changes) -> TrainState:
  """A train state whose every array depends on the step."""
  params = {
    "a": {"kernel": jnp.arange(4096.0).reshape(64, 64) + step},
    "b": jnp.arange(5, dtype=jnp.bfloat16) - step,
    **changes,
  }
  number = jnp.int32(step)
  return TrainState(
    step=number,
    params=params,
    opt_state=optax.adam(1e-3).init(params),
    spike_detector=SpikeDetector(jnp.full(4, step, jnp.float32), number, number, number),
    rng=jax.random.key_data(jax.random.key(step)),
  )


def abstract(**changes) -> TrainState:
  return checkpoint.abstract_like(jax.eval_shape(lambda: make_state(0, **changes)))


def save(run_dir: Path, losses: dict[int, float | None], keep: int = 3) -> None:
  checkpoints = Checkpoints(run_dir, keep=keep)
  for step, loss in losses.items():
    checkpoints.save(make_state(step), {"data": {"batches": step}}, loss)
  checkpoints.close()


def assert_is(found: checkpoint.Restored, step: int) -> None:
  assert found.step == step
  assert found.metadata == {"data": {"batches": step}}
  jax.tree.map(np.testing.assert_array_equal, found.state, make_state(step))


def edit(file: Path, change) -> None:
  content = json.loads(file.read_bytes())
  change(content)
  file.write_text(json.dumps(content))


def without_an_entry(file: Path) -> None:
  def change(content):
    del content["tree_metadata"][sorted(content["tree_metadata"])[-1]]

  edit(file, change)


def nested_deeply(file: Path) -> None:
  file.write_text('{"a":' * 2000 + "1" + "}" * 2000)


def edit_sealed(folder: Path, change) -> None:
  """Changes the metadata of a checkpoint, with a right checksum."""

  def edited(content):
    sealed = checksum.unseal(content["custom_metadata"])
    change(sealed)
    content["custom_metadata"] = checksum.seal(sealed)

  edit(folder / "_CHECKPOINT_METADATA", edited)


def forged(saved: Path, run_dir: Path, field: str, value) -> Path:
  """Copies a run and changes the metadata of its newest checkpoint, with a right checksum."""
  shutil.copytree(saved, run_dir)
  step = max(checkpoint.available_steps(run_dir))

  def change(sealed):
    *parents, last = field.split(".")
    for key in parents:
      sealed = sealed[key]
    if value is ...:
      del sealed[last]
    else:
      sealed[last] = value

  edit_sealed(run_dir / "checkpoints" / str(step), change)
  return run_dir
