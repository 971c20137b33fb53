"""Checks and reads the metadata of a checkpoint: its run's position in data and metrics."""

from __future__ import annotations

import json
import re
from typing import Any

# No run sees more rows, or writes more bytes of metrics.
_MOST = 2**62


def check(metadata: Any) -> None:
  """Checks the metadata of a checkpoint, which may be edited: a checksum is no signature.

  Raises:
    ValueError: an entry is missing or invalid; the message names it.
  """
  for name, is_right, kind in _FIELDS:
    value = metadata
    for key in name.split("."):
      if not isinstance(value, dict):
        raise ValueError(f"the metadata lacks the object with {name}")
      value = value.get(key)
    if not is_right(value):
      raise ValueError(f"its {name} is {json.dumps(value)[:60]} and must be {kind}")


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value <= _MOST


def _is_number(value: Any) -> bool:
  return value is None or type(value) in (int, float)


def _is_step(value: Any) -> bool:
  return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _is_data(value: Any) -> bool:
  if not isinstance(value, dict):
    return False
  place = value.get("next_row", value.get("next_index"))
  stages = value.get("stages", [])
  return (
    _is_count(place)
    and all(_is_count(value.get(name, 1)) for name in ("batch_size", "step"))
    and isinstance(stages, list)
    and all(isinstance(s, list) and len(s) == 2 and all(map(_is_count, s)) for s in stages)
  )


# Of what older checkpoints lack, None is right.
_FIELDS = (
  ("data", _is_data, "rows or batches seen"),
  ("metrics", lambda value: value is None or _is_count(value), "a number of bytes"),
  (
    "pending",
    lambda value: value is None or (isinstance(value, list) and all(map(_is_step, value))),
    "a list of three numbers per step",
  ),
  (
    "heldout",
    lambda value: (
      value is None or (isinstance(value, dict) and all(map(_is_number, value.values())))
    ),
    "numbers by name",
  ),
  (
    "lives",
    lambda value: (
      value is None
      or (isinstance(value, dict) and all(type(v) in (int, float) for v in value.values()))
    ),
    "seconds by name",
  ),
  (
    "identity",
    lambda value: (
      value is None or (isinstance(value, dict) and isinstance(value.get("config", ""), str))
    ),
    "an object with a configuration",
  ),
)


def of_data(metadata: dict[str, Any]) -> dict[str, Any]:
  """Returns the state of the batches: rows seen; see `data.loader.Batches.state`.

  Older checkpoints count batches. Their batch size is in the checkpoint's configuration, which may
  differ from the run's.

  Args:
    metadata: the metadata, saved with the train state.

  Returns:
    {'next_row': n}, with more of a mixture with a schedule; or {'next_index': n} of batches, with
    their 'batch_size' if it is known.
  """
  data = dict(metadata["data"])
  rows = _batch_size((metadata.get("identity") or {}).get("config", ""))
  if "next_row" not in data and rows is not None:
    data["batch_size"] = rows
  return data


def _batch_size(config: str) -> int | None:
  """Finds the rows per step in a configuration's text, where each binding is a line."""
  value = _bound(r"(?:\w+\.)*Experiment\.batch_size", config)
  if value and value.startswith("%"):
    value = _bound(re.escape(value[1:]), config)
  return int(value) if value and value.isdecimal() else None


def _bound(name: str, config: str) -> str | None:
  found = re.search(rf"^{name} = (\S+)", config, flags=re.MULTILINE)
  return found and found[1]
