"""JSON as the standard has it: a number that is not finite is null."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any, **options: Any) -> str:
  """`json.dumps` with null for NaN and the infinities, which strict readers refuse."""
  return json.dumps(without_nan(value), allow_nan=False, **options)


def without_nan(value: Any) -> Any:
  """JSON values with None for every float that is not finite."""
  if isinstance(value, dict):
    return {key: without_nan(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [without_nan(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None) -> float:
  """What stands for a number: NaN for null."""
  return math.nan if value is None else value
