"""Reads a checkpoint, on all processes or on none."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from base import buckets, small_files
from base.errors import UserError
from base.wording import plural
from data.lanes import OPTION as CARRY
from parallel import coordination, processes
from parallel.tree_paths import by_path, joined
from training.checksum import checksums, description_checksum, unseal
from training.padded_vocabulary import NO_ROWS, VocabularyRows
from training.passed_state import OPTION as PASSED
from training.reading import Damage, Refusal, attempt

PARAMS = "params"
# In the files of a checkpoint, where earlier versions look for it.
METADATA = "position"
# Names in the sealed part of a checkpoint's metadata.
CHECKSUMS, DESCRIPTIONS, METRICS = "checksums", "descriptions", "metrics"
_METADATA_FILE = "_CHECKPOINT_METADATA"
# Orbax writes it last. On a file system it then renames the folder, which is what counts there.
COMMIT_FILE = "commit_success.txt"
# Files that Orbax reads as JSON.
_JSON_FILES = (_METADATA_FILE, "*/_METADATA", "*/_sharding", "*/array_metadatas/*")
# Orbax's own are 5 deep. Readers of JSON end with a RecursionError at about 1,000.
_DEEPEST_JSON = 100


class CheckpointError(UserError):
  """A checkpoint is missing, damaged or of another model, or the storage failed.

  Attributes:
    may_pass: whether the same command may succeed later.
  """


def is_whole(checkpoint: Path) -> bool:
  """Whether a checkpoint was saved completely: see docs/design/checkpoints.md."""
  if buckets.in_bucket(checkpoint):
    return (checkpoint / COMMIT_FILE).is_file()
  return checkpoint.is_dir()


def sealed_contents(folder: Path) -> dict[str, Any] | None:
  """Reads the sealed part of a checkpoint's metadata without Orbax; None if it is damaged.

  Raises:
    OSError: it could not be read this time.
  """
  try:
    return unseal(json.loads(small_files.read(folder / _METADATA_FILE) or b"")["custom_metadata"])
  except (ValueError, LookupError, TypeError, RecursionError):
    return None


def load(
  folder: Path, abstract: dict[str, Any], where: str, rows: VocabularyRows = NO_ROWS
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads parts of a checkpoint, compares them with their checksums, and returns the metadata too.

  Args:
    folder: the checkpoint's folder.
    abstract: shapes, dtypes and shardings of each part.
    where: name of the checkpoint in errors.
    rows: the model's; padding rows are added or removed if the saved number differs.

  Raises:
    CheckpointError: it is of another model or optimizer.
    Damage: it cannot be read, or differs from what was saved.
  """
  contents: dict[str, Any] = {}
  loaded: dict[str, Any] = {}
  problem = ""
  try:
    # Orbax does not read relative paths, although it writes to them.
    found, saved, contents = describe(folder.absolute(), abstract, where, rows)
    loaded = _read(folder.absolute(), saved, found)
  except Damage as error:
    problem = f"Damage\n{_with_file(str(error), folder)}"
  except (Refusal, CheckpointError) as error:
    problem = f"{type(error).__name__}\n{error}"
  _agree(problem, folder, where)
  for name, part in loaded.items():
    expected = contents[CHECKSUMS][name]
    leaves = jax.tree_util.tree_leaves_with_path(part)
    if len(leaves) != len(expected):
      problem = problem or f"Damage\nit has {len(expected)} checksums for {len(leaves)} arrays"
      continue
    for (path, _), is_now, was in zip(leaves, checksums(part), expected, strict=True):
      if is_now != was and not problem:
        problem = f"Damage\nthe values of {joined(path)} differ from those that were saved"
  _agree(problem, folder, where)
  try:
    parts = {name: rows.padded_anew(loaded[name], wanted) for name, wanted in abstract.items()}
  except ValueError as error:
    raise CheckpointError(f"{where}: {error}. Use the VOCAB_SIZE it was trained with.") from None
  return parts, contents[METADATA]


def parameter_paths(folder: Path) -> set[str]:
  """Reads the paths of a checkpoint's parameters, joined by slashes; reads no arrays.

  Raises:
    Damage: its description cannot be read.
    CheckpointError: the storage failed.
  """
  try:
    metadata, _ = attempt(lambda: _described(folder.absolute(), [PARAMS]))
  except Refusal as error:
    raise CheckpointError(f"{folder} could not be read ({error}). Start again.") from None
  return set(by_path(metadata.metadata.get(PARAMS)))


def check(
  folder: Path, abstract: dict[str, Any], where: str, rows: VocabularyRows = NO_ROWS
) -> None:
  """Raises CheckpointError for a checkpoint of another model or optimizer; reads no arrays."""
  problem = ""
  try:
    describe(folder.absolute(), abstract, where, rows)
  except CheckpointError as error:
    problem = f"{type(error).__name__}\n{error}"
  except (Damage, Refusal):
    pass  # Damage: `load` reports it, or an older checkpoint is used.
  _agree(problem, folder, where)


def describe(
  folder: Path, abstract: dict[str, Any], where: str, rows: VocabularyRows
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
  """Reads a checkpoint's description; returns it, the arrays in the saved shapes, and metadata.

  Args:
    folder: the checkpoint's folder, an absolute path.
    abstract, where, rows: as in `load`.

  Raises:
    CheckpointError, Damage: as `load`.
    Refusal: the storage failed.
  """
  metadata, contents = attempt(lambda: _described(folder, abstract))
  found = {name: metadata.metadata.get(name) for name in abstract}
  if problem := _malformed(contents, [name for name, part in found.items() if part is not None]):
    raise CheckpointError(f"{where}: {problem}. It was edited; move the checkpoint away.")
  saved = {}
  for name, part in found.items():
    if part is None:
      raise CheckpointError(
        f"{where} has parameters but no optimizer state: they were imported. "
        "Train in another directory that starts from this one (--init_from)."
      )
    saved[name] = rows.as_saved(abstract[name], part)
    check_shapes(saved[name], part, where, _called(name))
  return found, saved, contents


def _described(folder: Path, parts: Iterable[str]) -> tuple[Any, dict[str, Any]]:
  """Reads Orbax's description of a checkpoint, and its metadata.

  Parts that were never saved may be missing.

  If Orbax cannot read a description, it logs why and returns None. This raises instead, so that
  `training.reading.attempt` tries again, and has the log for its message.
  """
  try:
    small_files.require_regular_below(folder)
  except small_files.NotReadable as error:
    raise Damage(str(error)) from None
  _require_shallow(folder)
  metadata = orbax().checkpointables_metadata(folder)
  try:
    contents = unseal(metadata.custom_metadata)
  except ValueError as error:
    raise Damage(f"its metadata ({_METADATA_FILE}) {error}") from None
  for name in parts:
    _require_description(metadata.metadata.get(name), contents, name)
  return metadata, contents


def _require_description(found: Any, contents: dict[str, Any], name: str) -> None:
  """Raises Damage if a part's description differs from what was saved.

  Without this, an entry that is missing would look like another model or optimizer.
  """
  sums, descriptions = contents.get(CHECKSUMS), contents.get(DESCRIPTIONS)
  if not isinstance(sums, dict) or name not in sums:
    return
  file = f"{name}/_METADATA"
  if found is None:
    # Orbax also needs the other files for it.
    raise Damage(f"the description of its {_called(name)} (in {name}/) cannot be read")
  count = len(jax.tree.leaves(found))
  if isinstance(sums[name], list) and count != len(sums[name]):
    raise Damage(f"{file} describes {plural(count, 'array')}, but {len(sums[name])} were saved")
  # Checkpoints of earlier versions have no checksum of it.
  if isinstance(descriptions, dict) and descriptions.get(name) != description_checksum(found):
    raise Damage(f"{file} describes other arrays than were saved")


def _require_shallow(folder: Path) -> None:
  """Raises Damage for a file with deeply nested JSON, in which Orbax would end as in a bug."""
  for pattern in _JSON_FILES:
    for file in folder.glob(pattern):
      try:
        value = json.loads(small_files.read(file) or b"0")
        too_deep = _is_deeper(value, _DEEPEST_JSON)
      except ValueError:
        continue  # Orbax reports it, if it needs the file.
      except RecursionError:
        too_deep = True
      if too_deep:
        raise Damage(f"{file.relative_to(folder)} is nested more than {_DEEPEST_JSON} deep")


def _with_file(reason: str, folder: Path) -> str:
  """Adds the damaged file to a reason, if it is one with JSON: Orbax's errors seldom name it."""
  for pattern in _JSON_FILES:
    for file in folder.glob(pattern):
      name = str(file.relative_to(folder))
      if name not in reason and not _is_json_object(file):
        return f"{name} is damaged ({reason})"
  return reason


def _is_json_object(file: Path) -> bool:
  try:
    return isinstance(json.loads(small_files.read(file) or b""), dict)
  except (ValueError, RecursionError):
    return False
  except OSError:
    return True  # It could not be read this time.


def _is_deeper(value: Any, most: int) -> bool:
  """Whether JSON is nested deeper than this; does not recurse."""
  level = [value]
  for _ in range(most):
    nested = [item for item in level if isinstance(item, dict | list)]
    level = [x for item in nested for x in (item.values() if isinstance(item, dict) else item)]
  return any(isinstance(item, dict | list) for item in level)


def _malformed(contents: dict[str, Any], parts: Iterable[str]) -> str | None:
  """Describes invalid metadata with a valid checksum, which is no signature; None if valid."""
  sums = contents.get(CHECKSUMS)
  if not isinstance(sums, dict):
    return "its checksums are missing"
  for name in parts:
    numbers = sums.get(name)
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
      return f"the checksums of its {_called(name)} are not a list of whole numbers"
  if not isinstance(contents.get(METADATA), dict):
    return "its metadata is missing"
  return None


def _read(folder: Path, abstract: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
  """Reads this process's part of the arrays; if it fails, no other process waits for it."""
  ocp = orbax()
  here = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
  )
  several = processes.count() > 1
  with ocp.Context(multiprocessing_options=alone) if several else contextlib.nullcontext():
    return attempt(
      lambda: ocp.load_checkpointables(
        folder, {name: _with_types_of(abstract[name], found[name]) for name in abstract}
      )
    )


def _agree(problem: str, folder: Path, where: str) -> None:
  """Raises the same error on every process if one has a problem with a checkpoint.

  Args:
    problem: kind and text of this process's error; empty for none.
  """
  problems = processes.gather(problem, f"reading checkpoint {folder.name}")
  for kind in ("Refusal", "CheckpointError", "Damage"):
    for process, found in enumerate(problems):
      if not found.startswith(f"{kind}\n"):
        continue
      text = found.partition("\n")[2]
      if processes.count() > 1:
        text = f"{coordination.name(process)}: {text}"
      if kind == "Damage":
        raise Damage(text)
      if kind == "CheckpointError":
        raise CheckpointError(text)
      raise CheckpointError(
        f"{where} could not be read ({text}). It is left as it is: fix the cause and start again.",
        may_pass=True,
      )


def _with_types_of(abstract: Any, found: Any) -> Any:
  """Returns the abstract arrays with the saved dtypes, to which the checksums apply."""
  types = by_path(found)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: jax.ShapeDtypeStruct(
      leaf.shape, types[joined(path)].dtype, sharding=leaf.sharding
    ),
    abstract,
  )


def _called(part: str) -> str:
  return "parameters" if part == PARAMS else "optimizer state"


def _of_states(needed: dict[str, tuple[int, ...]], held: dict[str, tuple[int, ...]]) -> str | None:
  """Says why a run cannot go on with the states that a checkpoint keeps; None if it can."""
  wanted, saved = ((shapes.get("carried.position") or (0,))[0] for shapes in (needed, held))
  if not saved and wanted:
    return (
      f"carries no states. Set {CARRY}=False and {PASSED}=zero, or start another run from it "
      "(--init_from)."
    )
  if saved and not wanted:
    return (
      f"carries the states of {plural(saved, 'row')}. Set {CARRY}=True or {PASSED}=passed, as it "
      "was trained."
    )
  if saved != wanted:
    return (
      f"carries the states of {plural(saved, 'row')}, and a batch has {wanted}. Set "
      f"--gin.BATCH_SIZE={saved}."
    )
  return None


def check_shapes(expected: Any, found: Any, where: str, kind: str = "parameters") -> None:
  """Raises CheckpointError for the first array that is missing, unknown or of another shape."""
  thing = "parameter" if kind == "parameters" else "optimizer state"
  owner = "model" if kind == "parameters" else "optimizer"
  remedy = f"It is of another {owner}: use the configuration that it was trained with"
  # Another optimizer can start with these parameters.
  remedy += ", or start another run from it (--init_from)." if owner == "optimizer" else "."
  needed = {path: tuple(leaf.shape) for path, leaf in by_path(expected).items()}
  held = {path: tuple(leaf.shape) for path, leaf in by_path(found).items()}
  if problem := _of_states(needed, held):
    raise CheckpointError(f"{where} {problem}")
  for path, shape in needed.items():
    if path not in held:
      raise CheckpointError(f"{where} has no {thing} {path} {shape}. {remedy}")
    if held[path] != shape:
      raise CheckpointError(
        f"{where}: {thing} {path} has shape {held[path]}, the {owner} needs {shape}. {remedy}"
      )
  for path in sorted(held.keys() - needed.keys()):
    raise CheckpointError(
      f"{where} has {'a' if owner == 'model' else 'an'} {thing} {path} that the {owner} lacks. "
      f"{remedy}"
    )


def orbax() -> Any:
  """Imports Orbax, which takes two seconds, only where it is needed."""
  from orbax.checkpoint import v1

  from training import orbax_globs

  orbax_globs.enable()
  if "base.bucket_paths" in sys.modules:
    from training import orbax_s3

    orbax_s3.enable()
  return v1
