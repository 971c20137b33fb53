"""Streams tensors through a table of mappings, in and out, one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from conversion.weight_map import EMBEDDING, WeightMapping
from models.accounting import list_parameters
from models.language_model import LanguageModel

# Elements checked at once.
_PIECE = 2**24


def parameters(
  tensors: Mapping[str, np.ndarray],
  table: Iterable[WeightMapping],
  model: LanguageModel,
  digests: dict[str, bytes] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
  """Converts tensors that passed `check` to our parameters, one after the other in tree order.

  Only one parameter and one tensor are in memory at a time: a stacked parameter is filled from one
  tensor after the other.

  Args:
    tensors: arrays by name. None is kept, so that the mapping may read files.
    table: all tensors of the model, with those of each parameter together.
    model: the model.
    digests: receives the sha256 of the parameters with its paths (not stacked ones), in the model's
      dtype and without padding.

  Yields:
    path and array, in the model's dtypes.
  """
  entries: dict[str, list[WeightMapping]] = {}
  for entry in table:
    entries.setdefault(entry.path, []).append(entry)
  for parameter in list_parameters(model):
    # Released before the next one is read.
    yield parameter.path, _filled(parameter, entries[parameter.path], tensors, digests)


def with_tied_head(
  tensors: Mapping[str, np.ndarray],
  table: Iterable[WeightMapping],
  model: LanguageModel,
  head: str,
) -> Iterator[tuple[str, np.ndarray]]:
  """As `parameters`; also compares an output matrix in the files with a tied embedding.

  Args:
    tensors, table, model: see `parameters`.
    head: name of the output matrix, which files of tied models may hold.

  Raises:
    ValueError: the output matrix differs from the embedding.
  """
  digests = {EMBEDDING: b""} if model.tied and head in tensors else {}
  yield from parameters(tensors, table, model, digests)
  # Last, so that only one of the two largest tensors is in memory.
  kind = np.dtype(model.param_dtype)
  if digests and digests[EMBEDDING] != digest(tensors[head].astype(kind, copy=False)):
    raise ValueError(
      f"{head} differs from the embedding, but tie_word_embeddings is true: these weights are of "
      "another model. Set it to false if they are meant to differ."
    )


def _filled(parameter, entries, tensors, digests) -> np.ndarray:
  if entries[0].repeat is None:
    (entry,) = entries
    if entry.layout == "absent":
      return np.full(parameter.shape, entry.offset, parameter.dtype)
    with np.errstate(over="ignore"):
      array = np.asarray(entry.to_ours(tensors[entry.name]), parameter.dtype)
    if digests is not None and parameter.path in digests:
      digests[parameter.path] = digest(array)
    if entry.layout == "ids" and (missing := parameter.shape[0] - len(array)) > 0:
      array = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
    if entry.layout == "columns" and (missing := parameter.shape[1] - array.shape[1]) > 0:
      array = np.pad(array, [(0, 0), (0, missing)])
    if array.shape != parameter.shape:
      raise ValueError(
        f"{parameter.path} would have shape {array.shape} from {entry.name}, this model needs "
        f"{parameter.shape}."
      )
    _require_finite(array, entry.name)
  else:
    array = np.empty(parameter.shape, parameter.dtype)
    for entry in entries:
      if entry.layout == "absent":
        array[entry.repeat] = entry.offset
        continue
      with np.errstate(over="ignore"):
        array[entry.repeat] = entry.to_ours(tensors[entry.name])
      _require_finite(array[entry.repeat], entry.name)
  return array


def _require_finite(array: np.ndarray, name: str) -> None:
  """Raises ValueError if an array, in the model's dtype, has NaN or infinity.

  Checks it in pieces.
  """
  rows = np.atleast_1d(array)
  step = max(1, _PIECE // max(1, rows[:1].size))
  for start in range(0, len(rows), step):
    if not np.isfinite(rows[start : start + step]).all():
      raise ValueError(
        f"{name} holds numbers that are not finite (NaN, infinite, or too large for "
        f"{array.dtype}): these are "
        "no weights of a trained model. Download them again."
      )


def digest(array: np.ndarray) -> bytes:
  """Returns the sha256 of an array's bytes."""
  return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).digest()


def tensors(
  leaves: Mapping[str, np.ndarray], table: Iterable[WeightMapping], dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
  """Converts our parameters to another library's tensors, one at a time.

  The parameters of one tensor, and that tensor, are in memory at a time: tensors of the same
  parameters are made one after the other.

  Args:
    leaves: parameters by path. Each is looked up as often as its tensors lie apart, so that the
      mapping may read files.
    table: all tensors of the model.
    dtype: of tensors that hold no parameter.

  Yields:
    name and array, in the parameters' dtype.

  Raises:
    ValueError: a parameter is of another shape than the table needs; the message names it.
  """
  groups: dict[str, list[WeightMapping]] = {}
  for entry in table:
    groups.setdefault(entry.name, []).append(entry)
  first: dict[tuple[str, ...], int] = {}
  order = {name: tuple(entry.path for entry in group) for name, group in groups.items()}
  for paths in order.values():
    first.setdefault(paths, len(first))
  held: dict[str, np.ndarray] = {}
  for name in sorted(groups, key=lambda name: first[order[name]]):
    needed = [path for path in order[name] if path]
    held = {path: array for path, array in held.items() if path in needed}
    for path in needed:
      if path not in held:
        held[path] = leaves[path]
    yield name, _assembled(groups[name], held, dtype)


def _assembled(group: list[WeightMapping], held: Mapping[str, np.ndarray], dtype) -> np.ndarray:
  parts = []
  for entry in group:
    if entry.layout == "constant":
      return np.full(entry.shape, entry.offset, dtype)
    array = held[entry.path]
    parts.append(entry.to_theirs(array if entry.repeat is None else array[entry.repeat]))
  if group[0].rows is None:
    (whole,) = parts
  else:
    whole = np.empty(group[0].shape, np.result_type(*parts))
    for entry, part in zip(group, parts, strict=True):
      whole[entry.rows] = part
  if whole.shape != group[0].shape:
    raise ValueError(
      f"{group[0].path} would be {group[0].name} of shape {whole.shape}, not {group[0].shape}."
    )
  return np.ascontiguousarray(whole)


def nest(flat: Iterable[tuple[str, Any]]) -> dict[str, Any]:
  """Makes a tree from paths joined by slashes."""
  tree: dict[str, Any] = {}
  for path, leaf in flat:
    *parents, last = path.split("/")
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


def leaves(tree: Mapping[str, Any], model: LanguageModel) -> dict[str, np.ndarray]:
  """Returns a parameter tree's arrays by path.

  Raises:
    ValueError: one is missing or has another shape than the model's; the message names it.
  """
  return {
    parameter.path: leaf(tree, parameter.path, parameter.shape)
    for parameter in list_parameters(model)
  }


def leaf(tree: Mapping[str, Any], path: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the array of a parameter tree at a path.

  Raises:
    ValueError: it is missing or has another shape; the message names it.
  """
  node: Any = tree
  for key in path.split("/"):
    if key not in node:
      raise ValueError(f"parameter {path} {shape} is missing.")
    node = node[key]
  array = np.asarray(node)
  if array.shape != shape:
    raise ValueError(f"{path} has shape {array.shape}, this model needs {shape}.")
  return array
