"""The time of one operation of a compiled program, and what it occupies."""

from __future__ import annotations

import functools
from typing import NamedTuple

from planning.hardware.chip import Hardware
from planning.hlo import bytes_accessed, collectives, text
from planning.replay import kernels, network
from planning.replay.timeline import (
  COLLECTIVES,
  COPIES,
  CORE,
  HBM_COPIES,
  HOST,
  HOST_LINK,
  KERNELS,
  MEMORY,
  NETWORK,
  PRODUCTS,
  VECTOR,
)

# Operations that take no time, and custom calls that do nothing.
_FREE = {"parameter", "bitcast", "tuple", "get-tuple-element", "constant", "after-all"}
_FREE |= {"partition-id", "replica-id", "async-update", "opt-barrier", "domain", "add-dependency"}
_FREE_TARGETS = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound"}
# A TPU program's fusions that carry a collective along, and those that begin and end one.
_GOES_ON, _BEGINS, _ENDS = (
  "async_collective_fusion",
  "async-collective-start",
  "async-collective-done",
)
# Layout of an array in the host's memory.
_ON_HOST = "S(5)"
# An operation works on the chip if so many times the bytes that it moves in HBM lie there.
_MOSTLY = 3
# Operations that work on arrays at a rate that neither cycles nor bytes tell.
_UNKNOWN = {"sort", "fft", "triangular-solve", "cholesky", "rng", "rng-bit-generator", "infeed"}
_UNKNOWN |= {"outfeed", "send", "recv", "topk"}


class Cost(NamedTuple):
  """The time of an operation.

  Attributes:
    seconds: its time.
    category: one of `timeline.CATEGORIES`.
    resource: what it occupies, one of `timeline.RESOURCES`.
    modelled: whether a rule was made for such operations.
  """

  seconds: float
  category: str
  resource: str = CORE
  modelled: bool = True


class Costs:
  """Prices the operations of a program.

  A product takes the compiler's estimate of its cycles; all else that is in HBM takes the time of
  its bytes. The compiler's estimates for elementwise work are left out where HBM is involved: they
  price 16-bit arrays as if they had 32 bits, and schedules of the generated code need a tenth.
  """

  def __init__(self, program: text.HloProgram, hardware: Hardware):
    self._program, self._hardware = program, hardware
    self._count = functools.cache(functools.partial(bytes_accessed.count, program))
    self._collectives_in = functools.cache(functools.partial(collectives.in_computation, program))

  def begins(self, operation: text.Operation) -> bool:
    """Whether an operation only begins something that another ends."""
    return operation.kind.endswith("-start") or operation.name.startswith(_BEGINS)

  def ends(self, operation: text.Operation) -> bool:
    """Whether an operation waits for one that has begun."""
    return operation.kind.endswith("-done") or operation.name.startswith(_ENDS)

  def carries(self, operation: text.Operation) -> bool:
    """Whether an operation works while it carries a collective along."""
    return any(called.startswith(_GOES_ON) for called in operation.called())

  def of(self, operation: text.Operation, name: str) -> Cost | None:
    """Prices an operation of computation `name`; None if it takes no time.

    A start costs what the operation that it begins takes on its resource.
    """
    if operation.kind in _FREE or operation.target in _FREE_TARGETS or self.ends(operation):
      return None
    if sent := self._network(operation, name):
      return sent
    if self.begins(operation):
      return self._copy(operation, name)
    return self._core(operation, name)

  def _network(self, operation: text.Operation, name: str) -> Cost | None:
    """Prices a collective, also one inside of a fusion; None for anything else."""
    found = collectives.collective_of(self._program, name, operation)
    listed = [found] if found else []
    for called in operation.called() if operation.kind in ("fusion", "async-start") else ():
      if not called.startswith(_GOES_ON):
        listed += self._collectives_in(called)
    if not listed:
      return None
    seconds = sum(network.seconds(c, operation.rest, self._hardware) for c in listed)
    # A synchronous one stops the core.
    return Cost(seconds, COLLECTIVES, NETWORK if self.begins(operation) else CORE)

  def _copy(self, operation: text.Operation, name: str) -> Cost:
    """Prices what an asynchronous copy moves, on the chip's own engine or over the host's link."""
    if _ON_HOST in operation.result:
      size = self._copied(operation, name)
      return Cost(size / self._hardware.pace.host_link, HOST, HOST_LINK)
    moved = 0
    for called in operation.called():
      inner = self._count(called)
      moved += sum(inner.moved(o) for o in inner.operations.values())
    moved = moved or self._count(name).moved(operation)
    return Cost(moved / self._bandwidth, COPIES, HBM_COPIES)

  def _copied(self, operation: text.Operation, name: str) -> int:
    """Bytes that a copy to or from the host moves: of a slice, not of the array that it is in."""
    operations = self._program.computations[name]
    for called in operation.called():
      operations = self._program.computations[called]
      operation = next(inner for inner in operations.values() if inner.is_root)
    if operation.kind.startswith("dynamic-update-slice"):
      return text.size(operations[operation.operands[1]].result)
    if operation.kind in ("slice-start", "dynamic-slice-start"):  # (operands, results, context)
      return text.size(text.types(operation.result)[-2])
    return text.size(text.types(operation.result)[0])

  def _core(self, operation: text.Operation, name: str) -> Cost:
    pace = self._hardware.pace
    count = self._count(name)
    moved = count.moved(operation)
    memory = moved / self._bandwidth
    flops = self._flops(operation, name)
    cycles = None
    if operation.cycles is not None and pace.clock is not None:
      cycles = operation.cycles / pace.clock
    if operation.kind == "custom-call" and not flops:
      operations = self._program.computations[name]
      instructions = kernels.seconds(operation, operations, self._hardware)
      known = instructions is not None or kernels.decided_by_bytes(operation, self._hardware)
      return Cost(max(memory, instructions or 0.0), KERNELS, CORE, known)
    if flops:
      seconds = flops / self._hardware.chip.flops
      if cycles is not None:
        seconds = max(seconds, cycles * pace.product_share)
      elif pace.clock is None:
        seconds /= pace.product_share
      return Cost(max(seconds, memory), PRODUCTS if seconds >= memory else MEMORY)
    known = operation.kind not in _UNKNOWN
    on_chip = self._count(name, everywhere=True).moved(operation) - moved
    if cycles is not None and cycles > memory and moved < on_chip / _MOSTLY:
      return Cost(cycles, VECTOR, CORE, known)
    return Cost(memory, MEMORY, CORE, known)

  def _flops(self, operation: text.Operation, name: str) -> int:
    flops = self._program.product_flops(operation, name)
    for called in operation.called() if operation.kind == "fusion" else ():
      flops += sum(
        self._flops(inner, called) for inner in self._program.computations[called].values()
      )
    return flops

  @property
  def _bandwidth(self) -> float:
    return self._hardware.chip.bandwidth * self._hardware.pace.bandwidth_share
