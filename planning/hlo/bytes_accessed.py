"""Counts the bytes that the operations of a compiled program read and write.

The count agrees with XLA's cost analysis of a whole program within 3%, apart from
`BytesAccessed.again` and `BytesAccessed.unseen`. The rules for TPUs (arrays include their padding,
a gathered row reads its whole tile, an update in place is written but not read) come from XLA's
counts of programs with one such operation each.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from planning.hlo import text

# Operations without traffic, and those that only call others.
_FREE = {"parameter", "bitcast", "tuple", "get-tuple-element", "constant", "after-all"}
_FREE |= {"while", "conditional", "call", "partition-id", "replica-id"}
_FREE |= {"async-start", "async-update"}
# Custom calls that move no bytes.
_FREE_TARGETS = {"AllocateBuffer", "ConcatBitcast"}
# Asynchronous collectives on TPUs: their start and done, and the fusions that they run beside.
_BEGINS, _ENDS, _GOES_ON = (
  "async-collective-start",
  "async-collective-done",
  "async_collective_fusion",
)

# Maps an array type's text to its bytes, or to 0 if its memory is not counted.
Measure = Callable[[str], int]


class BytesAccessed(NamedTuple):
  """Bytes read and written by a program.

  Attributes:
    by_source: bytes by operation, the largest first.
    again: bytes of asynchronous operations' arrays that XLA counts again at their updates and ends.
    unseen: the part of `by_source` that XLA leaves out, by operation.
  """

  by_source: dict[str, int]
  again: int
  unseen: dict[str, int]

  @property
  def total(self) -> int:
    """The sum over all operations."""
    return sum(self.by_source.values())

  @property
  def as_xla_counts(self) -> int:
    """The total by XLA's rules: with `again`, without `unseen`."""
    return self.total + self.again - sum(self.unseen.values())


def traffic(
  program: text.HloProgram, *, loops: bool = True, everywhere: bool = False
) -> BytesAccessed:
  """Counts the bytes that all operations of a program read and write.

  Args:
    program: the compiled program.
    loops: multiply a loop's body by its trip count; else count it once, as XLA does.
    everywhere: also count a TPU's on-chip memory, as XLA does; else only main memory.
  """
  by_source: collections.Counter[str] = collections.Counter()
  unseen: collections.Counter[str] = collections.Counter()
  again = 0
  for name, runs in program.in_sequence():
    counted = count(program, name, everywhere=everywhere)
    times = runs if loops else 1
    for operation in program.computations[name].values():
      moved = times * counted.moved(operation)
      by_source[f"{operation.kind}: {operation.source}"] += moved
      again += times * counted.again(operation)
      if missed := times * counted.unseen(operation):
        unseen[re.sub(r"[.\d]+$", "", operation.name)] += missed
  return BytesAccessed(dict(by_source.most_common()), again, dict(unseen.most_common()))


class Count(NamedTuple):
  """Counts the bytes that the operations of one computation move."""

  program: text.HloProgram
  operations: dict[str, text.Operation]
  measure: Measure

  def moved(self, operation: text.Operation) -> int:
    """Bytes that an operation reads and writes."""
    kind = operation.kind
    if kind in _FREE or _ends(operation) or operation.target in _FREE_TARGETS:
      return 0  # counted at its start
    if kind == "fusion":
      return self._moved_by_fusion(operation)
    operands = self._operands(operation)
    written = self.measure(operation.result)
    if kind in ("slice", "dynamic-slice"):
      return self._part(operation.result, of=operands[0]) + written
    if kind in ("slice-start", "dynamic-slice-start"):  # (operands, results, context)
      result = text.types(operation.result)[-2]
      return self._part(result, of=operands[0]) + self.measure(result)
    if kind == "dynamic-update-slice":
      return self.measure(operands[1]) + self._part(operands[1], of=operation.result)
    if kind == "gather":
      return self._tiles(operation) + sum(map(self.measure, operands[1:])) + written
    if kind == "scatter":
      return 2 * self._tiles(operation) + sum(map(self.measure, operands[1:]))
    read = sum(map(self.measure, operands))
    if kind.endswith("-start") and kind != "all-reduce-start":
      return max(read, written)  # its result repeats its operands
    if operation.target in text.LIBRARY_PRODUCTS:  # the result, then the workspace
      return read + self.measure(text.types(operation.result)[0])
    return read + written

  def again(self, operation: text.Operation) -> int:
    """Bytes that XLA counts again for an asynchronous operation."""
    operands = sum(map(self.measure, self._operands(operation)))
    if operation.name.startswith(_ENDS):
      return operands + self.measure(operation.result)
    if operation.name.startswith(_BEGINS):
      return operands
    if operation.kind == "copy-start":
      return operands
    if operation.kind == "async-update":
      return operands + self.measure(operation.result)
    return self.measure(operation.result) if _ends(operation) else 0

  def unseen(self, operation: text.Operation) -> int:
    """Bytes that XLA's analysis leaves out.

    These are the bytes of kernels without a cost estimate, and those that a scatter reads when it
    is fused with the producer of its updates.
    """
    if operation.kind == "custom-call" and '"bytes_accessed":' not in operation.rest:
      return self.moved(operation)
    if operation.kind == "fusion":
      body = self.program.computations[operation.computation("calls")].values()
      root = next(inner for inner in body if inner.is_root)
      if root.kind == "fusion" and any(
        inner.kind == "scatter"
        for inner in self.program.computations[root.computation("calls")].values()
      ):
        return self.moved(operation) - self.measure(operation.result)
    return 0

  def _operands(self, operation: text.Operation) -> list[str]:
    """The operands' types."""
    return [self.operations[o].result for o in operation.operands if o in self.operations]

  def _part(self, part: str, *, of: str) -> int:
    """Bytes of a part of an array, in the memory that the array is in."""
    return text.size(part) if self.measure(of) else 0

  def _tiles(self, operation: text.Operation) -> int:
    """Bytes of the tiles that a gather reads, or that a scatter reads and writes."""
    whole = self._operands(operation)[0]
    (dtype, shape), *_ = text.arrays(whole)
    if operation.kind == "gather":
      window = operation.numbers("slice_sizes")
      picked = text.arrays(operation.result)[0][1]
    else:
      picked = text.arrays(self._operands(operation)[2])[0][1]
      sizes = (picked[axis] for axis in operation.numbers("update_window_dims"))
      missing = operation.numbers("inserted_window_dims", "input_batching_dims")
      window = [1 if axis in missing else next(sizes) for axis in range(len(shape))]
    windows = math.prod(picked) // max(math.prod(window), 1)
    tiles = f"{dtype}[{','.join(map(str, window))}]{text.layout(whole)}"
    touched = windows * self._part(tiles, of=whole)
    in_order = "indices_are_sorted=true" in operation.rest  # each tile comes once
    return min(touched, self.measure(whole)) if in_order else touched

  def _moved_by_fusion(self, fusion: text.Operation) -> int:
    """Bytes that a fusion reads of its arguments and writes to its results."""
    called = fusion.computation("calls")
    body = Count(self.program, self.program.computations[called], self.measure)
    carried = fusion.aliases if called.startswith(_GOES_ON) else {}
    if fusion.name.startswith(_BEGINS):  # its argument is read, and is also its first result
      return (
        sum(map(self.measure, self._operands(fusion)))
        + self.measure(fusion.result)
        - sum(self.measure(self._operands(fusion)[operand]) for operand in fusion.aliases.values())
      )
    inside = body.operations.values()
    root = next(operation for operation in inside if operation.is_root)
    results = [body.operations[o] for o in root.operands] if root.kind == "tuple" else [root]
    written = sum(body.written(r) for place, r in enumerate(results) if place not in carried)
    read = sum(
      body.read(operation.name)
      for operation in inside
      if operation.kind == "parameter" and operation.place not in carried.values()
    )
    constants = sum(
      self.measure(operation.result)
      for operation in inside
      if operation.kind == "constant" and "[]" not in operation.result
    )
    return read + constants + written

  def written(self, result: text.Operation) -> int:
    """Bytes that one result of a fusion writes."""
    made = self._before_bitcasts(result)
    if made.kind == "dynamic-update-slice":
      return self._part(self._operands(made)[1], of=result.result)
    if made.kind == "scatter":
      source = self.operations.get(made.operands[0])
      if source is not None and self._before_bitcasts(source).kind == "parameter":
        return self._tiles(made)
    return self.measure(result.result)

  def _is_relaid(self, operation: text.Operation) -> bool:
    """Whether an operation inside of a fusion gives an array as it is, but for shape or tiles.

    Only what is taken of it is moved. On TPU7x, fusions turn tiles of 16 into tiles of 8 in a
    fusion inside.
    """
    if operation.kind == "fusion":
      inside = self.program.computations[operation.computation("calls")].values()
      return all(inner.kind in ("parameter", "bitcast", "copy") for inner in inside)
    return operation.kind in ("bitcast", "copy")

  def _before_bitcasts(self, operation: text.Operation) -> text.Operation:
    """The operation whose result this one is, maybe as another shape."""
    while operation.kind == "bitcast" and operation.operands[0] in self.operations:
      operation = self.operations[operation.operands[0]]
    return operation

  def read(self, name: str) -> int:
    """Bytes that a fusion reads of a parameter: each slice where only slices are used."""
    array = self.operations[name].result
    total, whole = self._uses(name, array)
    return total + whole * self.measure(array)

  def _uses(self, name: str, array: str) -> tuple[int, bool]:
    """Bytes of the parts of an array that its users read, and whether some read all of it."""
    total, whole = 0, False
    for user in self.operations.values():
      if name not in user.operands:
        continue
      first = user.operands[0] == name
      if self._is_relaid(user):
        parts, all_of_it = self._uses(user.name, array)
        total, whole = total + parts, whole or all_of_it or user.is_root
      elif user.kind == "fusion":
        body = Count(
          self.program, self.program.computations[user.computation("calls")], self.measure
        )
        inner = [o.name for o in body.operations.values() if o.kind == "parameter"]
        places = {body.operations[o].place: o for o in inner}
        total += sum(body.read(places[i]) for i, o in enumerate(user.operands) if o == name)
      elif user.kind == "slice" or (user.kind == "dynamic-slice" and first):
        total += self._part(user.result, of=array)
      elif user.kind == "dynamic-update-slice" and first:
        pass  # it is written in place
      elif user.kind in ("gather", "scatter") and first:
        total += self._tiles(user)
      elif user.kind in ("broadcast", "reshape"):
        total += self.measure(array)
      else:
        whole = True  # all of these share one read
    return total, whole


def count(program: text.HloProgram, name: str, *, everywhere: bool = False) -> Count:
  """Returns a count of the bytes that operations of computation `name` move.

  Args:
    program, everywhere: see `traffic`.
    name: the computation.
  """
  measure: Measure = text.size if everywhere else _in_main_memory
  return Count(program, program.computations[name], measure)


def _in_main_memory(types: str) -> int:
  return sum(text.size(one) for one in text.types(types) if not text.is_on_chip(one))


def _ends(operation: text.Operation) -> bool:
  return operation.kind.endswith("-done") or operation.name.startswith(_ENDS)
