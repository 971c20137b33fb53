"""Replays the schedule of a compiled program on one device.

XLA's programs are scheduled (`is_scheduled=true`): a computation's operations run in the order of
its text. The core takes one after the other. An operation that ends in `-start` occupies its own
resource (the copy engine of the HBM, the network, the host's link) from then on, and the core waits
for it where its `-done` stands. A start without operands only makes ready: the `async-update` that
brings them begins. A collective without a start waits for the network and stops the core. Copies of
HBM stand still while the core does what is limited by HBM.
"""

from __future__ import annotations

import collections
import dataclasses

from planning.hardware.chip import Hardware
from planning.hlo import text
from planning.replay.costs import Cost, Costs
from planning.replay.timeline import (
  COLLECTIVES,
  COPIES,
  CORE,
  HBM_COPIES,
  MEMORY,
  NETWORK,
  RESOURCES,
  Event,
  Timeline,
)

# What leads from the end of an asynchronous operation back to its start.
_PASSES_ON = ("get-tuple-element", "async-update", "bitcast", "tuple", "opt-barrier")


def replay(program: text.HloProgram, hardware: Hardware) -> Timeline:
  """Replays a program.

  Args:
    program: a compiled and scheduled program.
    hardware: what it was compiled for.

  Raises:
    ValueError: the program has no schedule: its text is from before the compiler's last passes.
  """
  if not program.is_scheduled:
    raise ValueError(
      "the program is not scheduled: its text has no is_scheduled=true, so its order is not that "
      "in which a device runs it. Take the text of the compiled program."
    )
  walk = _Walk(program, Costs(program, hardware))
  seconds = walk.computation(program.entry, 0.0, 1)
  events = tuple(sorted(walk.events, key=lambda event: event.start))
  return Timeline(seconds, events, dict(walk.unmodelled), walk.network)


@dataclasses.dataclass
class _Pending:
  """An asynchronous operation that runs until `end`."""

  end: float
  category: str


class _Walk:
  def __init__(self, program: text.HloProgram, costs: Costs):
    self.program, self.costs = program, costs
    self.events: list[Event] = []
    self.unmodelled: dict[str, float] = collections.defaultdict(float)
    self.network = 0.0

  def computation(self, name: str, start: float, times: int) -> float:
    """Replays one run of a computation; returns the time at its end.

    Args:
      name: the computation.
      start: the core's time.
      times: how often it runs in all.
    """
    core = start
    free: dict[str, float] = dict.fromkeys(RESOURCES, start)
    pending: dict[str, _Pending] = {}
    ready: dict[str, Cost] = {}  # starts that wait for their operands
    operations = self.program.computations[name]
    for operation in operations.values():
      if operation.kind == "while":
        trips = self.program.trips(operation)
        end = self.computation(operation.computation("body"), core, times * trips)
        if not self.program.has_known_trips(operation):
          self.unmodelled["while, taken to run once"] += times * (end - core)
        core += trips * (end - core)
      elif operation.kind == "conditional":
        core = self._branches(operation, core, times)
      elif operation.kind == "call":
        for called in operation.called():
          core = self.computation(called, core, times)
      elif self.costs.ends(operation):
        begun = self._begun(operation, operations, pending)
        if begun and begun.end > core:
          self._tell(operation, begun.category, CORE, core, begun.end - core, times)
          core = begun.end
      elif operation.kind == "async-update" and operation.operands[0] in ready:
        self._begin(operation, ready.pop(operation.operands[0]), core, times, free, pending)
      elif cost := self.costs.of(operation, name):
        if not self.costs.begins(operation):
          core = self._run(operation, cost, core, times, free, pending)
        elif operation.operands:
          self._begin(operation, cost, core, times, free, pending)
        else:
          ready[operation.name] = cost
    return core

  def _begin(
    self,
    operation: text.Operation,
    cost: Cost,
    core: float,
    times: int,
    free: dict[str, float],
    pending: dict[str, _Pending],
  ) -> None:
    """Begins an asynchronous operation as soon as its resource is free."""
    self._count(operation, cost, times)
    begin = max(core, free[cost.resource])
    free[cost.resource] = begin + cost.seconds
    pending[operation.name] = _Pending(begin + cost.seconds, cost.category)
    self._tell(operation, cost.category, cost.resource, begin, cost.seconds, times)

  def _run(
    self,
    operation: text.Operation,
    cost: Cost,
    core: float,
    times: int,
    free: dict[str, float],
    pending: dict[str, _Pending],
  ) -> float:
    """Runs an operation on the core; returns the core's time afterwards."""
    self._count(operation, cost, times)
    begin = core
    if cost.category == COLLECTIVES:
      begin = free[NETWORK] = max(core, free[NETWORK])
      self._tell(operation, COLLECTIVES, CORE, core, begin - core, times)
    if cost.category == MEMORY:
      for waits in pending.values():
        if waits.category == COPIES and waits.end > core:
          waits.end += cost.seconds
      if free[HBM_COPIES] > core:
        free[HBM_COPIES] += cost.seconds
    self._tell(operation, cost.category, CORE, begin, cost.seconds, times)
    return begin + cost.seconds

  def _count(self, operation: text.Operation, cost: Cost, times: int) -> None:
    if not cost.modelled:
      self.unmodelled[operation.kind] += cost.seconds * times
    if cost.category == COLLECTIVES:
      self.network += cost.seconds * times

  def _branches(self, operation: text.Operation, core: float, times: int) -> float:
    """Replays the branches of a conditional and keeps the longest."""
    longest, kept = core, (self.events, self.unmodelled, self.network)
    for called in operation.called():
      events, unmodelled, network = kept
      tried = _Walk(self.program, self.costs)
      end = tried.computation(called, core, times)
      if end > longest:
        longest = end
        self.events = events + tried.events
        self.network = network + tried.network
        self.unmodelled = collections.defaultdict(float, unmodelled)
        for kind, seconds in tried.unmodelled.items():
          self.unmodelled[kind] += seconds
    return longest

  def _tell(
    self,
    operation: text.Operation,
    category: str,
    resource: str,
    start: float,
    seconds: float,
    times: int,
  ) -> None:
    if seconds:
      name, kind = operation.name, operation.kind
      self.events.append(
        Event(name, kind, operation.source, category, resource, start, seconds, times)
      )

  def _begun(
    self,
    end: text.Operation,
    operations: dict[str, text.Operation],
    pending: dict[str, _Pending],
  ) -> _Pending | None:
    """Finds the start that an operation waits for; None if it was not priced."""
    queue, seen = list(end.operands), set(end.operands)
    while queue:
      name = queue.pop(0)
      if name in pending:
        return pending.pop(name)
      operation = operations.get(name)
      if operation is None:
        continue
      leads = operation.operands if operation.kind in _PASSES_ON else ()
      if operation.kind == "get-tuple-element":
        source = operations.get(operation.operands[0])
        # A fusion that carries a collective along passes on the operands that alias its results.
        if source is not None and source.kind == "fusion" and self.costs.carries(source):
          operand = source.aliases.get(operation.index)
          leads = () if operand is None else (source.operands[operand],)
      queue += [lead for lead in leads if lead not in seen]
      seen.update(leads)
    return None
