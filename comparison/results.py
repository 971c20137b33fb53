"""Stores the results of a comparison one by one, so that it can continue after an interruption."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from base import small_files


class NotMeasured(Exception):
  """A result is not stored, and may not be measured now."""


class ResultCache:
  """The stored results of a part, each in a JSON file that is written atomically.

  A result is found by the part's name, by everything that its value depends on, and by its key.
  Results with other options, models or devices are not found, but kept for later.
  """

  def __init__(
    self,
    folder: Path,
    part: str,
    depends: Callable[[str], Any],
    *,
    writes: bool = True,
    on_result: Callable[[str, float | None], None] | None = None,
  ):
    """Opens the stored results.

    Args:
      folder: folder of all parts; created when a result is stored.
      part: the part's name.
      depends: maps a key to the JSON values that its result depends on.
      writes: False in all processes but the first.
      on_result: called with a key and None before it is measured, and with its seconds after.
    """
    self._folder = folder / part
    self._depends = depends
    self._writes = writes
    self._on_result = on_result or (lambda key, seconds: None)
    # Read once, so that all processes agree on which results to measure.
    self._kept = {file.name: file for file in self._folder.glob("*.json")}
    self._values: dict[str, Any] = {}

  def cached(self, key: str, measure: Callable[[], Any]) -> Any:
    """Returns the stored value, or measures and stores it; see `comparison.measurement.Cached`.

    Raises:
      ValueError: the value is not JSON, or has a number that is not finite.
    """
    found = self._find(key)
    if found is not None:
      return found["value"]
    self._on_result(key, None)
    start = time.monotonic()
    value = measure()
    seconds = time.monotonic() - start
    self._keep(key, value, seconds)
    self._on_result(key, seconds)
    return self._values[key]["value"]

  def kept(self, key: str, measure: Callable[[], Any]) -> Any:
    """Returns the stored value; raises NotMeasured if there is none."""
    del measure
    found = self._find(key)
    if found is None:
      raise NotMeasured(key)
    return found["value"]

  def seconds(self, keys: Mapping[str, Any]) -> dict[str, float]:
    """Returns the seconds of stored results, by key."""
    found = {key: self._find(key) for key in keys}
    return {key: record["seconds"] for key, record in found.items() if record is not None}

  def _find(self, key: str) -> dict[str, Any] | None:
    if key not in self._values and (file := self._kept.get(self._name(key))):
      try:
        record = json.loads(small_files.read(file) or b"")
        if not isinstance(record, dict) or not {"value", "seconds"} <= record.keys():
          raise ValueError("it is not a result")
        self._values[key] = record
      except (ValueError, RecursionError):
        # Written atomically, so the disk or an edit damaged it: measured again.
        del self._kept[self._name(key)]
    return self._values.get(key)

  def _keep(self, key: str, value: Any, seconds: float) -> None:
    record = {"key": key, "seconds": seconds, "depends": self._depends(key), "value": value}
    try:
      text = json.dumps(record, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
      raise ValueError(
        f"the result {key!r} of {self._folder.name} cannot be kept: {error}"
      ) from error
    self._values[key] = json.loads(text)
    if not self._writes:
      return
    self._folder.mkdir(parents=True, exist_ok=True)
    small_files.replace(self._folder / self._name(key), text + "\n")

  def _name(self, key: str) -> str:
    words = re.sub(r"[^A-Za-z0-9.]+", "_", key).strip("_")[:60]
    return f"{words}-{digest([self._depends(key), key])}.json"


def digest(value: Any) -> str:
  """Returns a digest of a JSON value: twelve hexadecimal digits."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
