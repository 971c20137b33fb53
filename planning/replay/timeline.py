"""What a replay yields: when each operation runs on a device, and what the time goes to."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from training import json_files

# What a device spends its time on.
PRODUCTS = "matrix products"
MEMORY = "operations limited by HBM"
VECTOR = "vector work on chip"
KERNELS = "kernels"
COLLECTIVES = "exposed collectives"
COPIES = "waiting for copies of HBM"
HOST = "waiting for the host"
CATEGORIES = (PRODUCTS, MEMORY, VECTOR, KERNELS, COLLECTIVES, COPIES, HOST)

# What an operation occupies.
CORE, HBM_COPIES, NETWORK, HOST_LINK = "core", "HBM copies", "network", "host link"
RESOURCES = (CORE, HBM_COPIES, NETWORK, HOST_LINK)


@dataclasses.dataclass(frozen=True)
class Event:
  """An operation, or the wait for one, on a device.

  Attributes:
    name, kind: the operation's name in the program, and its opcode.
    source: JAX's name for the operation's origin.
    category: one of `CATEGORIES`.
    resource: one of `RESOURCES`. Seconds on the core, times `times`, add up to the program's time.
    start, seconds: of its first run.
    times: how often it runs; later runs of a loop's body are not events of their own.
  """

  name: str
  kind: str
  source: str
  category: str
  resource: str
  start: float
  seconds: float
  times: int


@dataclasses.dataclass(frozen=True)
class OperationTime:
  """The time of one operation over all its runs.

  Attributes:
    name, category, source: see `Event`.
    seconds: over all runs.
    times: number of runs.
  """

  name: str
  category: str
  source: str
  seconds: float
  times: int


@dataclasses.dataclass(frozen=True)
class Timeline:
  """One run of a program on one device.

  Attributes:
    seconds: its time.
    events: in the order in which they start.
    unmodelled: seconds of operations that no rule was made for, by opcode.
    network: seconds for which collectives occupy the network.
  """

  seconds: float
  events: tuple[Event, ...]
  unmodelled: dict[str, float]
  network: float

  def shares(self) -> dict[str, float]:
    """Returns the share of the time by category, in the order of `CATEGORIES`, without zeros."""
    total: dict[str, float] = dict.fromkeys(CATEGORIES, 0.0)
    for event in self.events:
      if event.resource == CORE:
        total[event.category] += event.seconds * event.times
    return {name: spent / self.seconds for name, spent in total.items() if spent}

  def largest(self, count: int) -> tuple[OperationTime, ...]:
    """Returns the operations that take most of the core's time, waits included."""
    spent: dict[str, float] = collections.defaultdict(float)
    first: dict[str, Event] = {}
    for event in self.events:
      if event.resource == CORE:
        spent[event.name] += event.seconds * event.times
        first.setdefault(event.name, event)
    most = sorted(spent, key=lambda name: -spent[name])[:count]
    return tuple(
      OperationTime(name, first[name].category, first[name].source, spent[name], first[name].times)
      for name in most
    )

  def trace(self, name: str) -> str:
    """Formats the timeline as Chrome's trace events (JSON), which Perfetto and XProf open.

    Source: "Trace Event Format", the JSON object format: complete events, times in microseconds.
    """
    places = {resource: place for place, resource in enumerate(RESOURCES)}
    listed: list[dict[str, Any]] = [
      {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": name}}
    ]
    listed += [
      {"ph": "M", "pid": 0, "tid": place, "name": "thread_name", "args": {"name": resource}}
      for resource, place in places.items()
    ]
    listed += [
      {
        "ph": "X",
        "pid": 0,
        "tid": places[event.resource],
        "name": event.name,
        "cat": event.category,
        "ts": 1e6 * event.start,
        "dur": 1e6 * event.seconds,
        "args": {"source": event.source, "kind": event.kind, "runs": event.times},
      }
      for event in self.events
    ]
    return json_files.dumps({"traceEvents": listed, "displayTimeUnit": "ms"}) + "\n"
