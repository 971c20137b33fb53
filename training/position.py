"""Where a run stands in its data, from a checkpoint of any age."""

from __future__ import annotations

import re
from typing import Any


def of_data(position: dict[str, Any]) -> dict[str, int]:
  """The state of the batches: rows seen.

  Older checkpoints count batches. How many rows these had is in the configuration that they keep,
  which need not be the run's of today.

  Args:
    position: what was saved beside the train state.

  Returns:
    {'next_row': n}; or {'next_index': n} of batches, with their 'batch_size' if it is known.
  """
  data = dict(position["data"])
  rows = _batch_size(position.get("identity", {}).get("config", ""))
  if "next_row" not in data and rows is not None:
    data["batch_size"] = rows
  return data


def _batch_size(config: str) -> int | None:
  """The rows per step that a configuration's text says; a binding is one line of it."""
  value = _bound(r"(?:\w+\.)*Experiment\.batch_size", config)
  if value and value.startswith("%"):
    value = _bound(re.escape(value[1:]), config)
  return int(value) if value and value.isdecimal() else None


def _bound(name: str, config: str) -> str | None:
  found = re.search(rf"^{name} = (\S+)", config, flags=re.MULTILINE)
  return found and found[1]
