"""Saves and restores the checkpoints of a run.

With `streamed_checkpoint` and `foreign_checkpoint` all that knows Orbax.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from base import buckets, paths, small_files
from parallel import coordination, processes
from parallel.tree_paths import by_path, joined
from training import chosen_checkpoint, json_files, reading, retention
from training.checkpoint_reader import (
  CHECKSUMS,
  COMMIT_FILE,
  DESCRIPTIONS,
  METADATA,
  METRICS,
  PARAMS,
  CheckpointError,
  check,
  is_whole,
  load,
  orbax,
  sealed_contents,
)
from training.checksum import checksums, description_checksum, seal
from training.padded_vocabulary import NO_ROWS, VocabularyRows
from training.reading import Damage
from training.step import TrainState

FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged_checkpoints"
# In the files of a checkpoint, which earlier versions read: the train state but for the parameters,
# and its fields that have another name there.
_TRAIN_STATE = "rest"
_SAVED_FIELDS = {"spike_detector": "guard"}
# Seconds until all hosts must see the same checkpoints in a shared folder.
_LISTINGS = 10
_HUSHED_FOR_GOOD: list[contextlib.ExitStack] = []
# A part of an array that its replicas would save one each: less is not worth the slicing, which
# compiles a program per part.
_MIN_SLICE_BYTES = 2**20
# Step names in Orbax's form.
_STEP = re.compile("0|[1-9][0-9]*")


class Restored(NamedTuple):
  """A restored checkpoint.

  Attributes:
    step: batches seen.
    state: the train state.
    metadata: as passed to `Checkpoints.save`.
    passed_over: newer checkpoints that could not be read, with the reason and their new places.
  """

  step: int
  state: TrainState
  metadata: dict[str, Any]
  passed_over: list[str]


class Checkpoints:
  """The checkpoints of a run directory: the newest few and the best."""

  def __init__(
    self, run_dir: Path, *, keep: int = 2, before_writing: Callable[[], None] = lambda: None
  ):
    """Sets the folder; reads and writes nothing yet.

    Args:
      run_dir: the run's directory.
      keep: number of newest checkpoints to keep, in addition to the best by held-out loss.
      before_writing: called before a checkpoint is saved or moved; ends a process without the lock.
    """
    self._run_dir = run_dir
    self._keep = keep
    self._before_writing = before_writing
    self._writer: Any = None
    self._hushed = contextlib.ExitStack()

  def save(
    self,
    state: TrainState,
    metadata: dict[str, Any],
    heldout_loss: float | None = None,
    *,
    judged: bool = True,
  ) -> None:
    """Starts to save; waits for the previous save, and returns once the arrays are copied.

    Does nothing if the step has a checkpoint.

    Args:
      state: the train state; its step names the checkpoint.
      metadata: JSON values with the positions in data and metrics.
      heldout_loss: chooses the best checkpoint; None or not finite for none.
      judged: whether its last step was taken; if not, it replaces no good checkpoint.

    Raises:
      CheckpointError: this or the save before it could not be written.
    """
    step = int(state.step)
    self._before_writing()
    with self._writing():
      writer = self._open()
      if any(saved.step == step for saved in writer.checkpoints):
        return
    parts = {PARAMS: state.params, _TRAIN_STATE: _train_state(state)}
    # Orbax detects truncated files, but not a changed byte in an array.
    sums = {name: checksums(part) for name, part in parts.items()}
    metrics = retention.metrics(heldout_loss, judged)
    contents = {
      METADATA: metadata,
      CHECKSUMS: sums,
      DESCRIPTIONS: {name: description_checksum(part) for name, part in parts.items()},
      METRICS: metrics or {},
    }
    self._before_writing()
    with self._writing():
      writer.save_checkpointables_async(
        step,
        parts,
        force=True,
        metrics=metrics,
        custom_metadata=seal(json_files.without_nan(contents)),
      )

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns a failed save into a one-line error; Orbax would log a page for each thread.

    Raises:
      CheckpointError: the save failed.
    """
    try:
      yield
    except CheckpointError:
      raise
    except Exception as error:  # Orbax, TensorStore and the file system each have their own
      # Until the process ends: Orbax's threads continue to fail.
      _HUSHED_FOR_GOOD.append(self._hushed.pop_all())
      kept = "There is no earlier one: fix the cause, and the same command starts again."
      if available_steps(self._run_dir):
        kept = "Earlier ones are complete: fix the cause, and the same command continues there."
      raise CheckpointError(
        f"a checkpoint could not be saved in {paths.shown(self._run_dir / FOLDER)}: "
        f"{reading.reason(error)}. {kept}",
        may_pass=not reading.is_full(error),
      ) from error

  def _open(self) -> Any:
    if self._writer is None:
      ocp = orbax()
      folder = (self._run_dir / FOLDER).absolute()
      aside = self._run_dir / DAMAGED_FOLDER
      lost = retention.repair(folder, aside) if processes.is_first() else []
      lost = json.loads(processes.told_by_first(json.dumps(lost)))
      self._hushed.enter_context(reading.quiet())
      self._writer = ocp.training.Checkpointer(
        folder,
        preservation_policy=retention.Retention(self._keep, frozenset(lost)),
        cleanup_tmp_directories=True,
        context=ocp.Context(
          array_options=ocp.options.ArrayOptions(
            saving=ocp.options.ArrayOptions.Saving(
              min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES
            )
          )
        ),
      )
    return self._writer

  def restore(self, abstract: TrainState, rows: VocabularyRows = NO_ROWS) -> Restored | None:
    """Restores the newest undamaged checkpoint; None if there is none.

    Damaged newer ones are moved away, so that the run can save those steps again.

    Args:
      abstract: shapes, dtypes and shardings of the state.
      rows: the model's; padding rows are added or removed if the saved number differs.

    Raises:
      CheckpointError: it is of another model, or none of several can be read.
    """
    wanted = {PARAMS: abstract.params, _TRAIN_STATE: _train_state(abstract)}
    damaged: dict[int, str] = {}
    for step in reversed(_agreed_steps(self._run_dir)):
      try:
        folder = self._run_dir / FOLDER / str(step)
        loaded, metadata = load(folder, wanted, f"checkpoint {step}", rows)
        if not retention.is_finite(loaded):
          raise Damage("holds values that are not finite")
      except Damage as error:
        damaged[step] = str(error)
        continue
      passed_over = [
        f"checkpoint {step}: {reason} (moved to {self._set_aside(step)})"
        for step, reason in damaged.items()
      ]
      return Restored(
        step,
        _with_train_state(abstract, loaded[PARAMS], loaded[_TRAIN_STATE]),
        metadata,
        passed_over,
      )
    if damaged:
      reasons = "; ".join(f"checkpoint {step}: {reason}" for step, reason in damaged.items())
      raise CheckpointError(
        f"no checkpoint in {paths.shown(self._run_dir)} can be read; {reasons}. Start in another "
        "directory."
      )
    return None

  def give_up(self, since: int) -> tuple[int | None, list[Path]]:
    """Moves the checkpoints from step `since` on away: a run could not continue from them.

    One that has, or may have had, a finite held-out loss stays: its parameters are good.

    Returns:
      the newest step that is left (None if none), and the new places of the others.
    """
    self.wait()
    folder = self._run_dir / FOLDER
    steps = available_steps(self._run_dir)
    bad = [s for s in steps if s >= since and not retention.may_be_good(folder / str(s))]
    # One process decides, because a shared folder may show others something else.
    steps, bad = json.loads(processes.told_by_first(json.dumps([steps, bad])))
    moved = [self._set_aside(step) for step in bad]
    return max(set(steps) - set(bad), default=None), moved

  def _set_aside(self, step: int) -> Path:
    """Moves a useless checkpoint to a folder that the run does not read or clean."""
    self._before_writing()
    folder = self._run_dir / DAMAGED_FOLDER
    folder.mkdir(exist_ok=True)
    target = folder / str(step)
    count = 1
    while target.exists():
      count += 1
      target = folder / f"{step}_{count}"
    processes.wait_for_all(f"found checkpoint {step} damaged")
    if processes.is_first():
      _move(self._run_dir / FOLDER / str(step), target)
    processes.wait_for_all(f"set checkpoint {step} aside")
    return target

  def wait(self) -> None:
    """Waits until the started save is on disk."""
    if self._writer is not None:
      with self._writing():
        self._writer.wait()

  def close(self) -> None:
    """Waits for saves and releases Orbax's resources."""
    if self._writer is not None:
      with self._writing():
        self._writer.close()
      self._hushed.close()


def _move(checkpoint: Path, target: Path) -> None:
  """Moves a checkpoint; in a bucket, where that takes time, it first stops to be one."""
  if not buckets.in_bucket(checkpoint):
    checkpoint.rename(target)
    return
  mark = small_files.read(checkpoint / COMMIT_FILE)
  (checkpoint / COMMIT_FILE).unlink(missing_ok=True)
  checkpoint.rename(target)
  if mark is not None:
    (target / COMMIT_FILE).write_bytes(mark)


def available_steps(run_dir: Path) -> list[int]:
  """Lists the steps of a run's complete checkpoints, oldest first."""
  folder = run_dir / FOLDER
  if not folder.is_dir():
    return []
  return sorted(int(p.name) for p in folder.iterdir() if _STEP.fullmatch(p.name) and is_whole(p))


def _agreed_steps(run_dir: Path) -> list[int]:
  """Lists the steps that all processes see; waits for a shared folder that shows one late.

  Raises:
    CheckpointError: the processes see different checkpoints.
  """
  for _ in range(_LISTINGS):
    steps = available_steps(run_dir)
    listings = processes.gather(" ".join(map(str, steps)), "checkpoints there are")
    if len(set(listings)) == 1:
      return steps
    time.sleep(1)
  other = next(i for i, found in enumerate(listings) if found != listings[0])
  raise CheckpointError(
    f"the processes see different checkpoints in {paths.shown(run_dir)}: "
    f"{coordination.name(0)} has {listings[0] or 'none'}, "
    f"{coordination.name(other)} has {listings[other] or 'none'}. Give a "
    "--run_dir that all hosts share."
  )


def require_same_arrays(
  run_dir: Path, abstract: TrainState, rows: VocabularyRows = NO_ROWS
) -> None:
  """Raises CheckpointError if the newest checkpoint is of another model or optimizer. All processes
  come here; see `Checkpoints.restore`, which finds it too.
  """
  for step in _agreed_steps(run_dir)[-1:]:
    wanted = {PARAMS: abstract.params, _TRAIN_STATE: _train_state(abstract)}
    check(run_dir / FOLDER / str(step), wanted, f"checkpoint {step}", rows)


def is_parameters_alone(run_dir: Path) -> bool:
  """Whether a run directory has only checkpoints without optimizer state: nothing was trained."""
  folder, steps = run_dir / FOLDER, available_steps(run_dir)
  return bool(steps) and not any(_has_train_state(folder / str(step)) for step in steps)


def _has_train_state(checkpoint: Path) -> bool:
  """Whether a checkpoint was saved with the train state, even if that is lost."""
  sums = (sealed_contents(checkpoint) or {}).get(CHECKSUMS)
  return (isinstance(sums, dict) and _TRAIN_STATE in sums) or (checkpoint / _TRAIN_STATE).exists()


def load_parameters(
  run_dir: Path, abstract_params: Any, which: str | int = "latest", rows: VocabularyRows = NO_ROWS
) -> tuple[Any, int]:
  """Loads the parameters of a run's checkpoint; changes nothing.

  Args:
    run_dir: the run's directory.
    abstract_params: shapes, dtypes and (optionally) shardings.
    which: 'latest', 'best' (by held-out loss) or a step.
    rows: as in `Checkpoints.restore`.

  Returns:
    the parameters, and the checkpoint's step.

  Raises:
    CheckpointError: the checkpoint is missing, damaged or of another model.
  """

  def read(folder: Path, where: str) -> Any:
    return load(folder, {PARAMS: abstract_params}, where, rows)[0][PARAMS]

  return chosen_checkpoint.read(run_dir / FOLDER, available_steps(run_dir), which, read)


def _train_state(state: TrainState) -> dict[str, Any]:
  """Flattens all but the parameters to a dict, so that files do not depend on optax's types."""
  arrays = by_path(state._replace(params=None), ".")
  return {_saved_name(name): array for name, array in arrays.items()}


def _with_train_state(abstract: TrainState, params: Any, saved: dict[str, Any]) -> TrainState:
  structure = abstract._replace(params=None)
  filled = jax.tree_util.tree_map_with_path(
    lambda path, _: saved[_saved_name(joined(path, "."))], structure
  )
  return filled._replace(params=params)


def _saved_name(name: str) -> str:
  """The name of an array of the train state in the files of a checkpoint."""
  first, dot, rest = name.partition(".")
  return _SAVED_FIELDS.get(first, first) + dot + rest


def abstract_like(tree: Any, sharding_of: Callable[[Any], Any] | None = None) -> Any:
  """Returns shapes and dtypes of a tree of (abstract) arrays, with shardings by a function."""
  if sharding_of is None:
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: first, tree)
  else:
    shardings = sharding_of(tree)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding),
    tree,
    shardings,
  )
