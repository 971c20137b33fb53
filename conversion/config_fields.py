"""Checks types and ranges of a config.json before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from layers.activations import ACTIVATIONS

_SHOWN = 60
# `PreTrainedConfig._encode_special_floats`: JSON has no infinity.
_FLOAT_TAG = "__float__"
_SPECIAL_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
# Hugging Face's names of activations -> ours. Of several, the first is written.
_ACTIVATIONS = {
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu_python_tanh": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_accurate": "gelu_tanh",
  "gelu": "gelu",
  "gelu_python": "gelu",
  "gelu_10": "clipped_gelu",
  "quick_gelu": "quick_gelu",
  "silu": "silu",
  "swish": "silu",
  "relu": "relu",
  "relu6": "relu6",
  "relu2": "relu_squared",
  "sigmoid": "sigmoid",
  "tanh": "tanh",
  "mish": "mish",
  "hardswish": "hard_swish",
  "laplace": "laplace",
  "sqrtsoftplus": "sqrt_softplus",
  "leaky_relu": "leaky_relu",
  "linear": "linear",
}


class Field(NamedTuple):
  """A number of a configuration.

  Attributes:
    kind: int or float; an int is also a float, a bool is neither.
    low, high: the range, including both ends.
    needed: whether it is required; otherwise it may be missing or null.
  """

  kind: type
  low: float
  high: float
  needed: bool = True

  def holds(self, value: Any) -> bool:
    """Whether a value has the kind and is in the range."""
    kinds = (int,) if self.kind is int else (int, float)
    # NaN is in no range; `math.isfinite` fails with whole numbers beyond those of floats.
    return type(value) in kinds and self.low <= value <= self.high

  def __str__(self) -> str:
    kind = "a whole number" if self.kind is int else "a number"
    return f"{kind} from {self.low:g} to {self.high:g}"


# Far beyond all published models: larger values are mistakes and would fill the memory.
VOCAB_SIZE = Field(int, 1, 10**7)
WIDTH = Field(int, 1, 10**5)
LAYERS = Field(int, 1, 10**4)
HIDDEN = Field(int, 1, 10**7)
HEADS = Field(int, 1, 10**4)
# As `base.ranges.ConvWidth`.
CONV_WIDTH = Field(int, 1, 256, needed=False)
EPSILON = Field(float, 1e-12, 1.0, needed=False)
ROTARY_BASE = Field(float, 1e-3, 1e12, needed=False)


def check(
  config: Mapping[str, Any],
  fields: Mapping[str, Field],
  what: str,
  *,
  booleans: tuple[str, ...] = (),
  also_wrong: tuple[str, ...] = (),
) -> None:
  """Checks every number and switch of a configuration.

  Args:
    config: the contents of a config.json.
    fields: numbers by name.
    what: the architecture's name in errors.
    booleans: names of switches, which may be missing.
    also_wrong: descriptions of further problems.

  Raises:
    ValueError: a value is missing, of another type or out of range; the message names it.
  """
  absent = [name for name, field in fields.items() if field.needed and name not in config]
  if absent:
    raise ValueError(f"this {what} configuration is incomplete: it lacks {', '.join(absent)}.")
  wrong = wrong_numbers(config, fields)
  wrong += [
    f"{name}={short(config[name])}, must be true or false"
    for name in booleans
    if name in config and not isinstance(config[name], bool)
  ]
  refuse([*wrong, *also_wrong], what)


def wrong_numbers(
  config: Mapping[str, Any], fields: Mapping[str, Field], place: str = ""
) -> list[str]:
  """Describes the numbers that are of another type or out of range."""
  return [
    f"{place}{name}={short(config.get(name))}, must be {field}"
    for name, field in fields.items()
    if not field.holds(config.get(name)) and (field.needed or config.get(name) is not None)
  ]


def refuse(wrong: list[str], what: str) -> None:
  """Raises ValueError with the first few problems, if there are any."""
  if wrong:
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    raise ValueError(
      f"this {what} configuration is not one that can be built: {'; '.join(wrong[:3])}{more}. "
      "Correct config.json, or give the folder of another model."
    )


def refuse_features(wrong: list[str], what: str) -> None:
  """Raises ValueError with features of a configuration that our models lack, if there are any."""
  if wrong:
    raise ValueError(
      f"this {what} configuration needs features that no model has here: {'; '.join(wrong[:3])}. "
      "Choose weights without them."
    )


def indivisible(pairs: list[tuple[str, int, str, int]]) -> list[str]:
  """Describes the sizes that are no multiple of another one: name, value, name, divisor."""
  return [
    f"{name}={value}, must be a multiple of {of}={divisor}"
    for name, value, of, divisor in pairs
    if value % divisor
  ]


def wrong_activation(config: Mapping[str, Any], name: str, default: str) -> list[str]:
  """Describes an activation that we lack."""
  found = config.get(name, default)
  if isinstance(found, str) and found in _ACTIVATIONS:
    return []
  return [f"{name}={short(found)}, must be one of {', '.join(_ACTIVATIONS)}"]


def our_activation(name: str) -> str:
  """Converts a name from `transformers.activations.ACT2FN` to ours."""
  return _ACTIVATIONS[name]


def their_activation(name: str) -> str:
  """Converts a name from `layers.activations.ACTIVATIONS` to Hugging Face's."""
  assert name in ACTIVATIONS
  return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == name)


def default(config: Mapping[str, Any], name: str, value: Any) -> Any:
  """Returns a configuration's value, or the given one if it is missing or null."""
  found = config.get(name)
  return value if found is None else found


def decoded(value: Any) -> Any:
  """Returns a value of config.json, with the infinities that transformers 5 writes as objects."""
  if isinstance(value, Mapping) and set(value) == {_FLOAT_TAG}:
    return _SPECIAL_FLOATS.get(str(value[_FLOAT_TAG]), value)
  if isinstance(value, list | tuple):
    return [decoded(part) for part in value]
  return value


def same(value: Any, rule: Any) -> bool:
  """Whether a value equals the fixed one; True is not 1, but 1 is 1.0."""
  numbers = (int, float)
  alike = type(value) is type(rule) or (type(value) in numbers and type(rule) in numbers)
  return alike and value == rule


def short(value: Any) -> str:
  """Formats a value for a message."""
  try:
    text = repr(value)
  except ValueError:  # a number with more digits than Python prints
    return "a huge number"
  return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
