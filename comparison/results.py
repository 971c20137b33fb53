"""Stores the results of a comparison one by one, so that it can continue after an interruption."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from base import small_files

# What a result depends on, if it is scored on files of the user.
TEXT = "text"
_FIELDS = {"key", "depends", "value", "seconds"}


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
    comparable: Callable[[Any], Any] = lambda depends: depends,
    writes: bool = True,
    on_result: Callable[[str, float | None], None] | None = None,
  ):
    """Opens the stored results.

    Args:
      folder: folder of all parts; created when a result is stored.
      part: the part's name.
      depends: maps a key to the JSON values that its result depends on, which are stored with it.
      comparable: maps these values to those that must be equal for a stored result to be found.
      writes: False in all processes but the first.
      on_result: called with a key and None before it is measured, and with its seconds after.
    """
    self._folder = folder / part
    self._depends, self._comparable = depends, comparable
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

  def changed(self, keys: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Returns why the first result that must be measured again is not found.

    Returns:
      a name in what it depends on, with the old and the new value; None if all are found, or were
      never measured.
    """
    for key in keys:
      if self._find(key) is None:
        now = _plain(self._comparable(self._depends(key)))
        for record in self._records(key):
          was = self._comparable(record["depends"])
          if isinstance(was, dict) and isinstance(now, dict):
            for name in now:
              if was.get(name) != now[name]:
                return name, was.get(name), now[name]
    return None

  def _find(self, key: str) -> dict[str, Any] | None:
    if key not in self._values:
      now = _plain(self._comparable(self._depends(key)))
      found = (r for r in self._records(key) if _equal(self._comparable(r["depends"]), now))
      if record := next(found, None):
        self._values[key] = record
    return self._values.get(key)

  def _records(self, key: str) -> Iterator[dict[str, Any]]:
    """Yields the stored results of a key, whatever they depend on; the file of its name first."""
    name = self._name(key)
    words = re.compile(re.escape(name.rpartition("-")[0]) + "-[0-9a-f]{12}[.]json")
    for other in sorted(filter(words.fullmatch, self._kept), key=lambda found: found != name):
      try:
        record = json.loads(small_files.read(self._kept[other]) or b"")
        if not isinstance(record, dict) or not record.keys() >= _FIELDS:
          raise ValueError("it is not a result")
      except (ValueError, RecursionError):
        # Written atomically, so the disk or an edit damaged it: measured again.
        del self._kept[other]
        continue
      if record["key"] == key:
        yield record

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
    return f"{words}-{digest([self._comparable(self._depends(key)), key])}.json"


def _equal(was: Any, now: Any) -> bool:
  """Compares what results depend on.

  A text that either does not name is left out: results of earlier versions name none, and a page
  must not need the files of its text.
  """
  if isinstance(was, dict) and isinstance(now, dict) and not (was.get(TEXT) and now.get(TEXT)):
    was, now = ({name: one[name] for name in one if name != TEXT} for one in (was, now))
  return was == now


def _plain(value: Any) -> Any:
  """Returns a JSON value as it is read back."""
  return json.loads(json.dumps(value))


def digest(value: Any) -> str:
  """Returns a digest of a JSON value: twelve hexadecimal digits."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
