"""Maps other libraries' tensors to our parameters, with their layouts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from models.accounting import list_parameters
from models.language_model import LanguageModel

EMBEDDING = "embedding/embedding"
_SHOWN = 4
_SHOWN_LETTERS = 120
# Elements checked at once.
_PIECE = 2**24
# Dtypes of weights in safetensors' and numpy's names.
_FLOATING = ("F16", "BF16", "F32", "F64", "float16", "bfloat16", "float32", "float64")


class WeightMapping(NamedTuple):
  """One tensor of another library, or one part of it, and its place in our parameters.

  Attributes:
    name: its name there.
    shape: its shape there.
    path: our parameter's path, joined by slashes.
    repeat: its row in the stacked parameter; None if the parameter is not stacked.
    layout: how its axes relate to ours:
      same        as ours
      ids         an entry for each id along the first axis; ours has padding after the last
      transposed  [out, in] for our [in, out]
      blocks      [N, R / N] for our [R]
      taps        [R, 1, taps], the current token last, for our [taps, R], the current token first
      reversed    [taps, R], the current token last, for our [taps, R], the current token first
      part_0, part_1: one of two parameters joined along the first axis (apart from axes of size 1)
  """

  name: str
  shape: tuple[int, ...]
  path: str
  repeat: int | None
  layout: str

  def to_ours(self, tensor: np.ndarray) -> np.ndarray:
    """Converts a tensor to the layout of our parameter (or one row of it), without padding."""
    match self.layout:
      case "transposed":
        return tensor.T
      case "blocks":
        return tensor.reshape(-1)
      case "taps":
        return tensor[:, 0, ::-1].T
      case "reversed":
        return tensor[::-1]
      case "part_0" | "part_1":
        part = tensor[int(self.layout[-1])]
        return part.reshape([size for size in part.shape if size > 1] or [1])
    return tensor

  def to_theirs(self, parameter: np.ndarray) -> np.ndarray:
    """Converts our parameter (or one row of it) to the tensor's layout; not for parts."""
    match self.layout:
      case "ids":
        return parameter[: self.shape[0]]
      case "transposed":
        return parameter.T
      case "blocks":
        return parameter.reshape(self.shape)
      case "taps":
        return parameter[::-1].T[:, None]
    return parameter


def outside(name: str, path: str, shape: tuple[int, ...], model: LanguageModel) -> WeightMapping:
  """The mapping of a parameter outside of the stack, which lies as ours but for our padding."""
  if path != EMBEDDING:
    return WeightMapping(name, shape, path, None, "same")
  return WeightMapping(name, (model.vocab_size, *shape[1:]), path, None, "ids")


def check(
  table: Iterable[WeightMapping],
  shapes: Mapping[str, tuple[int, ...]],
  optional: Iterable[str] = (),
) -> None:
  """Compares a model's tensors with the available ones, before anything is read.

  Args:
    table: all tensors of the model.
    shapes: shapes of the available tensors by name.
    optional: names of tensors to ignore.

  Raises:
    ValueError: tensors are missing, unknown or of a wrong shape; the message lists them.
  """
  expected = {entry.name: entry.shape for entry in table}
  missing = [f"{name} {shape}" for name, shape in expected.items() if name not in shapes]
  extra = [
    f"{name} {tuple(shape)}"
    for name, shape in shapes.items()
    if name not in expected and name not in optional
  ]
  wrong = [
    f"{name} has shape {tuple(shapes[name])}, this model needs {shape}"
    for name, shape in expected.items()
    if name in shapes and tuple(shapes[name]) != shape
  ]
  problems = [
    f"{len(found)} {what} ({_listed(found)})"
    for found, what in (
      (missing, "missing"),
      (extra, "unknown"),
      (wrong, "of another shape"),
    )
    if found
  ]
  if problems:
    raise ValueError(
      f"the tensors do not match the model: {' and '.join(problems)}. Build the model from the "
      "tensors' configuration."
    )


def check_types(types: Mapping[str, str]) -> None:
  """Raises ValueError if tensors are not floating-point; the message names them."""
  wrong = [f"{name} is {kind}" for name, kind in types.items() if kind not in _FLOATING]
  if wrong:
    raise ValueError(
      f"weights must be floating-point ({', '.join(_FLOATING[:4])}): {_listed(wrong)}. "
      "Convert or download the original weights."
    )


def check_count(backbone: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
  """Compares the least number of parameters of a model with the available tensors.

  Checked before the model is built, because tracing 10,000 layers takes minutes.

  Args:
    backbone: options of `models.backbone.Backbone`.
    shapes: shapes of the tensors by name.

  Raises:
    ValueError: the tensors have too few elements for the model.
  """
  width, depth = backbone["width"], backbone["depth"]
  mlp = 3 * width * width * backbone["mlp_expansion"]
  least = backbone["vocab_size"] * width + depth * mlp
  held = sum(math.prod(shape) for shape in shapes.values())
  if least > held or depth > len(shapes):
    raise ValueError(
      f"a model of {depth:,} layers, width {width:,} and {backbone['vocab_size']:,} ids has at "
      f"least {least:,} parameters, the {len(shapes):,} tensors have {held:,}. The configuration "
      "is of other weights, or files are missing. Download them again."
    )


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


def _filled(parameter, entries, tensors, digests) -> np.ndarray:
  if entries[0].repeat is None:
    (entry,) = entries
    with np.errstate(over="ignore"):
      array = np.asarray(entry.to_ours(tensors[entry.name]), parameter.dtype)
    if digests is not None and parameter.path in digests:
      digests[parameter.path] = digest(array)
    if entry.layout == "ids" and (missing := parameter.shape[0] - len(array)) > 0:
      array = np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
    if array.shape != parameter.shape:
      raise ValueError(
        f"{parameter.path} would have shape {array.shape} from {entry.name}, this model needs "
        f"{parameter.shape}."
      )
    _require_finite(array, entry.name)
  else:
    array = np.empty(parameter.shape, parameter.dtype)
    for entry in entries:
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


def _listed(items: list[str]) -> str:
  rest = len(items) - _SHOWN
  shown = [
    item if len(item) <= _SHOWN_LETTERS else f"{item[:_SHOWN_LETTERS]}..."
    for item in items[:_SHOWN]
  ]
  return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
