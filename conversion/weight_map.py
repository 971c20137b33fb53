"""Maps other libraries' tensors to our parameters, with their layouts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from models.accounting import list_parameters
from models.language_model import LanguageModel

EMBEDDING = "embedding/embedding"
HEAD = "head/kernel"
_SHOWN = 4
_SHOWN_LETTERS = 120
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
      columns     [V, D] for our [D, V] with padding after the last column
      joined      [N, R / N, R / N] for our [M, R / M, R / M], where N divides M; only written
      part_0, part_1: one of two parameters joined along the first axis (apart from axes of size 1)
      constant    no parameter: the tensor holds `offset` everywhere; only written
      absent      no tensor: our parameter holds `offset` everywhere; only read
    rows: indices of the first axis of their tensor that belong to our parameter, in our order; the
      other rows belong to other parameters. None: all rows.
    scale, offset: their tensor is `scale * ours + offset`; only written.
  """

  name: str
  shape: tuple[int, ...]
  path: str
  repeat: int | None
  layout: str
  rows: np.ndarray | None = None
  scale: float = 1.0
  offset: float = 0.0

  @property
  def is_only_written(self) -> bool:
    """Whether the tensor, as it is, is no value of our parameter."""
    if self.layout == "absent":
      return False
    return self.layout in ("constant", "joined") or (self.scale, self.offset) != (1.0, 0.0)

  def to_ours(self, tensor: np.ndarray) -> np.ndarray:
    """Converts a tensor to the layout of our parameter (or one row of it), without padding."""
    if self.rows is not None:
      tensor = tensor[self.rows]
    match self.layout:
      case "transposed" | "columns":
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
    """Converts our parameter (or one row of it) to the tensor's layout; not for halves."""
    if self.scale != 1.0 or self.offset != 0.0:
      changed = np.multiply(parameter, np.float32(self.scale), dtype=np.float32)
      changed += np.float32(self.offset)
      parameter = changed.astype(parameter.dtype, copy=False)
    match self.layout:
      case "columns":
        return parameter[:, : self.shape[0]].T
      case "joined":
        return _joined(parameter, self.shape[0])
      case "ids":
        return parameter[: self.shape[0]]
      case "transposed":
        return parameter.T
      case "blocks":
        return parameter.reshape(self.shape)
      case "taps":
        return parameter[::-1].T[:, None]
    return parameter


def _joined(blocks: np.ndarray, count: int) -> np.ndarray:
  """Joins diagonal blocks [M, b, b] to fewer and larger ones [count, ...], with zeros beside."""
  together, size = len(blocks) // count, blocks.shape[-1]
  joined = np.zeros((count, together * size, together * size), blocks.dtype)
  for index, block in enumerate(blocks):
    place = slice(index % together * size, (index % together + 1) * size)
    joined[index // together, place, place] = block
  return joined


class Place(NamedTuple):
  """Where a parameter of the stack, or one row of a stacked one, belongs.

  Attributes:
    path: the parameter's path.
    rest: the path within its block, such as 'mixer/query/kernel'.
    shape: of the parameter, or of one row of a stacked one.
    layer: number of the block.
    repeat: row of a stacked parameter; None if it is not stacked.
  """

  path: str
  rest: str
  shape: tuple[int, ...]
  layer: int
  repeat: int | None


def places(model: LanguageModel) -> Iterator[Place]:
  """Lists the stack's parameters, layer by layer for each, in tree order."""
  pattern = len(model.pattern)
  repeats = model.depth // pattern
  for parameter in list_parameters(model):
    if not parameter.path.startswith("stack/"):
      continue
    _, group, block, rest = parameter.path.split("/", 3)
    index, stacked = int(block.removeprefix("block_")), group == "repeats"
    shape = parameter.shape[1:] if stacked else parameter.shape
    for repeat in range(repeats) if stacked else (repeats,):
      layer = repeat * pattern + index
      yield Place(parameter.path, rest, shape, layer, repeat if stacked else None)


def outer_shapes(model: LanguageModel) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the parameters outside of the stack, by path."""
  return {p.path: p.shape for p in list_parameters(model) if not p.path.startswith("stack/")}


def their_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
  """Returns the shape of a tensor for a parameter, or a row of one; not for blocks and parts."""
  if layout == "transposed":
    return shape[::-1]
  if layout == "taps":
    return (shape[1], 1, shape[0])
  return shape


def outside(name: str, path: str, shape: tuple[int, ...], model: LanguageModel) -> WeightMapping:
  """The mapping of a parameter outside of the stack, which lies as ours but for our padding."""
  if path == HEAD:
    return WeightMapping(name, (model.vocab_size, shape[0]), path, None, "columns")
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
    ValueError: tensors are missing, unknown, of a wrong shape, or stored for other options than the
      model's; the message lists them.
  """
  table = list(table)
  check_readable(table)
  expected = {entry.name: entry.shape for entry in table if entry.layout != "absent"}
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


def check_readable(table: Iterable[WeightMapping]) -> None:
  """Raises ValueError if a table can only be written: the tensors mean something else there."""
  if changed := [entry.name for entry in table if entry.is_only_written]:
    raise ValueError(
      f"the model has other options than the weights were made for: {_listed(changed)} would mean "
      "something else. Leave out --gin. bindings of biases, norms, the embedding's scale and gate "
      "blocks."
    )


def check_types(types: Mapping[str, str]) -> None:
  """Raises ValueError if tensors are not floating-point; the message names them."""
  wrong = [f"{name} is {kind}" for name, kind in types.items() if kind not in _FLOATING]
  if wrong:
    raise ValueError(
      f"weights must be floating-point ({', '.join(_FLOATING[:4])}): {_listed(wrong)}. "
      "Convert or download the original weights."
    )


def check_count(
  backbone: Mapping[str, Any], mixers: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
  """Compares the least number of parameters of a model with the available tensors.

  Checked before the model is built, because tracing 10,000 layers takes minutes.

  Args:
    backbone: options of `models.backbone.Backbone`.
    mixers: options of the model's function.
    shapes: shapes of the tensors by name.

  Raises:
    ValueError: the tensors have too few elements for the model.
  """
  width, depth = backbone["width"], mixers.get("layers", backbone["depth"])
  mlp = 3 * width * backbone.get("mlp_width", backbone.get("mlp_expansion", 0) * width)
  least = backbone["vocab_size"] * width + depth * mlp
  held = sum(math.prod(shape) for shape in shapes.values())
  if least > held or depth > len(shapes):
    raise ValueError(
      f"a model of {depth:,} layers, width {width:,} and {backbone['vocab_size']:,} ids has at "
      f"least {least:,} parameters, the {len(shapes):,} tensors have {held:,}. The configuration "
      "is of other weights, or files are missing. Download them again."
    )


def _listed(items: list[str]) -> str:
  rest = len(items) - _SHOWN
  shown = [
    item if len(item) <= _SHOWN_LETTERS else f"{item[:_SHOWN_LETTERS]}..."
    for item in items[:_SHOWN]
  ]
  return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
