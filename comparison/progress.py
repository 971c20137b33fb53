"""Shows the progress of a comparison over all its results, with an ETA."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterable
from typing import TextIO

from base import heartbeat
from training.metrics import ProgressLine, show_duration, show_number


@dataclasses.dataclass
class PlannedResult:
  """A planned result.

  Attributes:
    part, key: the result's part and key.
    group: name of a group of results with comparable costs.
    cost: cost in the group's unit.
    seconds: time that it took; None until it is measured.
    of_steps: the part of it that grows with the cost, if it is a training: without compilation.
  """

  part: str
  key: str
  group: str
  cost: float
  seconds: float | None = None
  of_steps: float | None = None


class ComparisonProgress(ProgressLine):
  """Shows one live line on a terminal; elsewhere a line per finished result, and of long ones.

  Training runs use it as their progress: their steps advance the current result.
  """

  def __init__(self, stream: TextIO | None = None):
    """Sets the output stream; no results are planned yet."""
    super().__init__(0, sys.stderr if stream is None else stream)
    self._results: dict[tuple[str, str], PlannedResult] = {}
    self._running: PlannedResult | None = None
    # Time and step of the current training's last shown step.
    self._last: tuple[float, int] | None = None

  @property
  def running_key(self) -> str | None:
    """The key of the result that is being measured, as the line shows it."""
    return self._running and self._running.key

  def plan(self, results: Iterable[PlannedResult]) -> None:
    """Adds results to measure, and stored ones with their seconds."""
    self._results |= {(result.part, result.key): result for result in results}

  def on_result(self, part: str, key: str, seconds: float | None) -> None:
    """Records the start (None) or end of a result; called by `comparison.results.ResultCache`."""
    result = self._results.setdefault((part, key), PlannedResult(part, key, part, 1.0))
    if seconds is None:
      self._running, self._began, self._last = result, time.monotonic(), None
      self.started(0)
      if self.live:
        self._tell("")
      elif all(item.seconds is None for item in self._results.values()):
        # Nothing else is said until its first step is compiled.
        self.say(f"[1/{len(self._results)}] {part}: {key}")
      return
    result.seconds, self._running = seconds, None
    if (pace := self._seconds_per_step()) is not None:
      result.of_steps = min(seconds, pace * self._steps)
    self._last = None
    self._shown = time.monotonic()
    done, total = self._count()
    if not self.live or done == total:
      self.say(f"[{done}/{total}] {part}: {key}  {seconds:.1f} s  {self.eta()}")

  def show(self, step: int, values: dict[str, float]) -> None:
    """Shows a training step of the current result; in a log, one every 15 seconds."""
    now = time.monotonic()
    self._last = now, step
    if now - self._shown >= (0.1 if self.live else heartbeat.SECONDS_BETWEEN_LINES):
      self._shown = now
      self._tell("  ".join(f"{name} {show_number(value)}" for name, value in values.items()), step)

  def show_heldout(self, step: int, heldout: dict[str, float]) -> None:
    """Shows nothing: the page has the held-out loss."""

  def expect_steps(self, steps: int) -> None:
    """Sets the number of steps of the current run."""
    self._steps = steps

  def eta(self) -> str:
    """Formats the time left, estimated from results of the same group."""
    if all(result.seconds is not None for result in self._results.values()):
      return "done"
    left, unknown = self._left()
    more = f" + {unknown} not yet timed" if unknown else ""
    return f"ETA {show_duration(left)}{more}"

  def _left(self) -> tuple[float, int]:
    """Returns the seconds left, and the number of results without an estimate."""
    seconds, unknown = 0.0, 0
    for group in {result.group for result in self._results.values()}:
      results = [result for result in self._results.values() if result.group == group]
      timed = [result for result in results if result.seconds is not None and result.cost > 0]
      known = sum(result.cost for result in timed)
      # Compilation takes as long for a short training as for a long one.
      stepped = [result for result in timed if result.of_steps is not None] or timed
      grown = [result.of_steps or result.seconds or 0.0 for result in stepped]
      rate = sum(grown) / sum(result.cost for result in stepped) if known else math.nan
      fixed = sum((result.seconds or 0.0) for result in stepped) - sum(grown)
      fixed = fixed / len(stepped) if known else math.nan
      for result in results:
        if result.seconds is not None:
          continue
        if result is self._running:
          elapsed = time.monotonic() - self._began
          if (pace := self._seconds_per_step()) is not None and self._last is not None:
            seconds += pace * (self._steps - self._last[1])
            continue
          if known:
            seconds += max(0.0, fixed + rate * result.cost - elapsed)
            continue
        if known:
          seconds += rate * result.cost + (fixed if result.cost else 0.0)
        else:
          unknown += 1
    return seconds, unknown

  def _seconds_per_step(self) -> float | None:
    """Returns the time of a step of the current training; None if two steps are not yet known."""
    if self._last is None or self._first is None or self._last[1] <= self._first[1]:
      return None
    return (self._last[0] - self._first[0]) / (self._last[1] - self._first[1])

  def _count(self) -> tuple[int, int]:
    return sum(result.seconds is not None for result in self._results.values()), len(self._results)

  def _tell(self, detail: str, step: int | None = None) -> None:
    done, total = self._count()
    result = self._running
    if result is None:
      return
    if step is not None and self._steps:
      detail = f"step {step}/{self._steps}  {detail}"
    parts = [f"[{done + 1}/{total}] {result.part}: {result.key}", detail, self.eta()]
    self._print("  ".join(filter(None, parts)))
