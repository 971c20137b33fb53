"""Checks types and ranges of RecurrentGemma's config.json before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

_SHOWN = 60


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
    return type(value) in kinds and math.isfinite(value) and self.low <= value <= self.high

  def __str__(self) -> str:
    kind = "a whole number" if self.kind is int else "a number"
    return f"{kind} from {self.low:g} to {self.high:g}"


# Far beyond all published models: larger values are mistakes and would fill the memory.
FIELDS = {
  "vocab_size": Field(int, 1, 10**7),
  "hidden_size": Field(int, 1, 10**5),
  "num_hidden_layers": Field(int, 1, 10**4),
  "intermediate_size": Field(int, 2, 10**7),
  "num_attention_heads": Field(int, 1, 10**4),
  "attention_window_size": Field(int, 1, 2**31 - 1),
  "logits_soft_cap": Field(float, 1e-3, 1e6),
  "lru_width": Field(int, 1, 10**6, needed=False),
  "num_key_value_heads": Field(int, 1, 10**4, needed=False),
  "head_dim": Field(int, 1, 10**5, needed=False),
}
_ROTARY = {
  "rope_theta": Field(float, 1e-3, 1e12),
  "partial_rotary_factor": Field(float, 1e-3, 1.0),
}


def check_fields(config: Mapping[str, Any]) -> None:
  """Checks every number of a configuration, and that sizes divide each other.

  Raises:
    ValueError: a number is missing, of another type or out of range; the message names it.
  """
  absent = [name for name, field in FIELDS.items() if field.needed and name not in config]
  if absent:
    raise ValueError(
      f"this RecurrentGemma configuration is incomplete: it lacks {', '.join(absent)}."
    )
  wrong = [
    f"{name}={short(config.get(name))}, must be {field}"
    for name, field in FIELDS.items()
    if not field.holds(config.get(name)) and (field.needed or config.get(name) is not None)
  ]
  wrong += _wrong_in_rotary(config) + _wrong_in_blocks(config)
  refuse(wrong or _indivisible(config))


def refuse(wrong: list[str]) -> None:
  """Raises ValueError with the first few problems, if there are any."""
  if wrong:
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    raise ValueError(
      "this RecurrentGemma configuration is not one that can be built: "
      f"{'; '.join(wrong[:3])}{more}."
    )


def short(value: Any) -> str:
  """Formats a value for a message."""
  try:
    text = repr(value)
  except ValueError:  # a number with more digits than Python prints
    return "a huge number"
  return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _wrong_in_rotary(config: Mapping[str, Any]) -> list[str]:
  nested = config.get("rope_parameters")
  if nested is not None and not isinstance(nested, Mapping):
    return [f"rope_parameters={short(nested)}, must be an object"]
  wrong = []
  for place, values in (("", config), ("rope_parameters.", nested or {})):
    wrong += [
      f"{place}{name}={short(values[name])}, must be {field}"
      for name, field in _ROTARY.items()
      if name in values and not field.holds(values[name])
    ]
  return wrong


def _wrong_in_blocks(config: Mapping[str, Any]) -> list[str]:
  blocks = config.get("block_types")
  if blocks is None or (
    isinstance(blocks, list | tuple) and blocks and all(isinstance(name, str) for name in blocks)
  ):
    return []
  return [f"block_types={short(blocks)}, must be a list of names"]


def _indivisible(config: Mapping[str, Any]) -> list[str]:
  """Lists sizes that do not divide another one, but must."""
  width, heads = config["hidden_size"], config["num_attention_heads"]
  pairs = [
    ("hidden_size", width, "num_attention_heads", heads),
    ("lru_width", config.get("lru_width") or width, "num_attention_heads", heads),
    ("num_attention_heads", heads, "num_key_value_heads", config.get("num_key_value_heads") or 1),
    ("intermediate_size", config["intermediate_size"], "2 * hidden_size", 2 * width),
  ]
  return [
    f"{name}={value}, must be a multiple of {of}={divisor}"
    for name, value, of, divisor in pairs
    if value % divisor
  ]
