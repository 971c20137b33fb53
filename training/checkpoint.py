"""Checkpoints of a run; the only file that knows Orbax."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from training.step import TrainState

FOLDER = "checkpoints"
_PARAMS, _REST = "params", "rest"
_HELDOUT = "heldout_loss"


class CheckpointError(Exception):
  """A checkpoint is missing, damaged, or of another model."""


class Restored(NamedTuple):
  """What a checkpoint held.

  Attributes:
    step: batches seen.
    state: the train state.
    position: what was passed to `Checkpoints.save` beside the state.
    passed_over: newer checkpoints that could not be read, with the reason.
  """

  step: int
  state: TrainState
  position: dict[str, Any]
  passed_over: list[str]


class Checkpoints:
  """The checkpoints of one run directory: the last few and the best."""

  def __init__(self, run_dir: Path, *, keep: int = 2):
    """Opens (and makes) the folder.

    Args:
      run_dir: the run's directory.
      keep: number of newest checkpoints that stay; the best by held-out loss stays besides.
    """
    ocp = _orbax()
    policies = ocp.training.preservation_policies
    self._checkpointer = ocp.training.Checkpointer(
      (run_dir / FOLDER).absolute(),
      preservation_policy=policies.AnyPreservationPolicy(
        [
          policies.LatestN(keep),
          policies.BestN(
            get_metric_fn=lambda metrics: -metrics[_HELDOUT],
            n=1,
            keep_checkpoints_without_metrics=False,
          ),
        ]
      ),
      cleanup_tmp_directories=True,
    )

  def save(
    self, state: TrainState, position: dict[str, Any], heldout_loss: float | None = None
  ) -> None:
    """Starts to save; returns once the arrays are copied, and waits for the save before this one.

    Args:
      state: the train state; its step names the checkpoint.
      position: JSON values that say where data and metrics stand.
      heldout_loss: what the best checkpoint is chosen by.
    """
    step = int(state.step)
    if any(saved.step == step for saved in self._checkpointer.checkpoints):
      return
    self._checkpointer.save_checkpointables_async(
      step,
      {_PARAMS: state.params, _REST: _rest(state)},
      force=True,
      metrics=None if heldout_loss is None else {_HELDOUT: heldout_loss},
      custom_metadata=position,
    )

  def restore(self, abstract: TrainState) -> Restored | None:
    """Reads the newest checkpoint that can be read; None if there is none.

    Args:
      abstract: shapes, types and shardings of the state to make.

    Raises:
      CheckpointError: it is of another model, or none of several can be read.
    """
    passed_over: list[str] = []
    steps = sorted((c.step for c in self._checkpointer.checkpoints), reverse=True)
    for step in steps:
      try:
        self._check(step, abstract)
        loaded = self._checkpointer.load_checkpointables(
          step, {_PARAMS: abstract.params, _REST: _rest(abstract)}
        )
        position = self._checkpointer.checkpointables_metadata(step).custom_metadata
      except CheckpointError:
        raise
      except Exception as error:  # Orbax, TensorStore and the file system each have their own
        passed_over.append(f"checkpoint {step}: {_first_line(error)}")
        logging.getLogger(__name__).warning("cannot read %s", passed_over[-1])
        continue
      state = _with_rest(abstract, loaded[_PARAMS], loaded[_REST])
      return Restored(step, state, dict(position or {}), passed_over)
    if passed_over:
      raise CheckpointError(
        "no checkpoint can be read; " + "; ".join(passed_over) + ". Start in another directory."
      )
    return None

  def _check(self, step: int, abstract: TrainState) -> None:
    found = _parameter_metadata(self._checkpointer, step)
    check_shapes(abstract.params, found, f"checkpoint {step}")

  def wait(self) -> None:
    """Waits until what was started is on disk."""
    self._checkpointer.wait()

  def close(self) -> None:
    """Waits, and lets go of the folder."""
    self._checkpointer.close()


def _parameter_metadata(checkpointer: Any, step: int) -> Any:
  """Shapes and types of a checkpoint's parameters."""
  metadata = checkpointer.checkpointables_metadata(step).metadata.get(_PARAMS)
  if metadata is None:
    raise OSError("the description of its parameters cannot be read")
  return metadata


def check_shapes(expected: Any, found: Any, where: str) -> None:
  """Raises CheckpointError at the first parameter that is missing, too many, or of another shape."""

  def shapes(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(_name(key) for key in path): tuple(leaf.shape) for path, leaf in leaves}

  expected, found = shapes(expected), shapes(found)
  remedy = "It is of another model: use the configuration it was trained with."
  for path, shape in expected.items():
    if path not in found:
      raise CheckpointError(f"{where} has no parameter {path} {shape}. {remedy}")
    if found[path] != shape:
      raise CheckpointError(
        f"{where}: parameter {path} has shape {found[path]}, the model needs {shape}. {remedy}"
      )
  for path in found.keys() - expected.keys():
    raise CheckpointError(f"{where} has a parameter {path} that the model lacks. {remedy}")


def available_steps(run_dir: Path) -> list[int]:
  """Steps of the finished checkpoints of a run, oldest first."""
  folder = run_dir / FOLDER
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def load_parameters(
  run_dir: Path, abstract_params: Any, which: str | int = "latest"
) -> tuple[Any, int]:
  """Reads the parameters of a run's checkpoint.

  Args:
    run_dir: the run's directory.
    abstract_params: shapes, types and (optionally) shardings.
    which: 'latest', 'best' (by held-out loss) or a step.

  Returns:
    the parameters, and the checkpoint's step.

  Raises:
    CheckpointError: there is no such checkpoint, it cannot be read, or it is of another model.
  """
  steps = available_steps(run_dir)
  if not steps:
    raise CheckpointError(f"{run_dir} holds no checkpoint yet. Train there first.")
  ocp = _orbax()
  with ocp.training.Checkpointer((run_dir / FOLDER).absolute()) as checkpointer:
    step = _choose(checkpointer, steps, which, run_dir)
    try:
      found = _parameter_metadata(checkpointer, step)
      check_shapes(abstract_params, found, f"{run_dir}, checkpoint {step}")
      loaded = checkpointer.load_checkpointables(step, {_PARAMS: abstract_params})
    except CheckpointError:
      raise
    except Exception as error:
      raise CheckpointError(
        f"{run_dir}, checkpoint {step} cannot be read: {_first_line(error)}. "
        f"Others: {[s for s in steps if s != step]}."
      ) from error
  return loaded[_PARAMS], step


def _choose(checkpointer, steps: list[int], which: str | int, run_dir: Path) -> int:
  if which == "latest":
    return steps[-1]
  if which == "best":
    scored = [c for c in checkpointer.checkpoints if c.metrics and _HELDOUT in c.metrics]
    if not scored:
      raise CheckpointError(
        f"{run_dir} has no checkpoint with a held-out loss. Use the latest, or evaluate in training."
      )
    return min(scored, key=lambda c: c.metrics[_HELDOUT]).step
  if int(which) not in steps:
    raise CheckpointError(f"{run_dir} has no checkpoint of step {which}; there are {steps}.")
  return int(which)


def _rest(state: TrainState) -> dict[str, Any]:
  """All but the parameters as a flat dict, so that the file does not depend on optax's types."""
  rest = state._replace(params=None)
  leaves = jax.tree_util.tree_leaves_with_path(rest)
  return {".".join(_name(key) for key in path): leaf for path, leaf in leaves}


def _with_rest(abstract: TrainState, params: Any, rest: dict[str, Any]) -> TrainState:
  structure = abstract._replace(params=None)
  filled = jax.tree_util.tree_map_with_path(
    lambda path, _: rest[".".join(_name(key) for key in path)], structure
  )
  return filled._replace(params=params)


def _name(key: Any) -> str:
  for attribute in ("key", "name", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def _first_line(error: Exception) -> str:
  return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def _orbax() -> Any:
  """Orbax takes two seconds to import, which `--help` and the data's errors need not wait for."""
  from orbax.checkpoint import v1

  return v1


def abstract_like(tree: Any, sharding_of: Callable[[Any], Any] | None = None) -> Any:
  """Shapes and types of a tree of (abstract) arrays, with shardings if a function gives them."""
  shardings = jax.tree.map(lambda _: None, tree) if sharding_of is None else sharding_of(tree)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      np.shape(leaf), leaf.dtype, sharding=sharding or _default_sharding()
    ),
    tree,
    shardings,
    is_leaf=lambda leaf: leaf is None,
  )


def _default_sharding() -> jax.sharding.Sharding:
  return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
