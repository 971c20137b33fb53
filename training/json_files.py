"""Standard JSON: numbers that are not finite are null."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any, **options: Any) -> str:
  """Formats JSON with null for NaN and infinities, which strict readers reject."""
  return json.dumps(without_nan(value), allow_nan=False, **options)


def without_nan(value: Any) -> Any:
  """Replaces every float that is not finite by None."""
  if isinstance(value, dict):
    return {key: without_nan(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [without_nan(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None) -> float:
  """Converts a JSON number to float; null becomes NaN."""
  return math.nan if value is None else value
