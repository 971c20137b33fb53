"""Reads the text of a compiled program (`compiled.as_text()`)."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_HEADER = re.compile(r"(ENTRY )?%(\S+) \(.*\{$")
_OPERATION = re.compile(r"\s*(ROOT )?%(\S+) = (.*?) ([a-z][a-z\-]*)\((.*)$")
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d+|pred)\[(?P<sizes>[\d,]*)\](?P<layout>\{[^}]*\})?")
# Of a dot, and of a library's product in its configuration.
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:ension)?s(?:=|":)[{\[]([\d,"]*)[}\]]')
# Operations that touch no memory, or whose traffic belongs to the operation that begins or ends them.
_FREE = {"parameter", "bitcast", "tuple", "get-tuple-element", "constant", "after-all", "iota"}
_FREE |= {"while", "conditional", "call", "partition-id", "replica-id", "async-update"}
# Matrix products that XLA hands to a library on GPUs.
_LIBRARY_PRODUCTS = ("__cublas$gemm", "__cublas$lt$matmul")

Array = tuple[str, tuple[int, ...]]


def arrays(types: str) -> list[Array]:
  """(element type, shape) of each array in a type's text."""
  return [
    (found["dtype"], tuple(int(n) for n in found["sizes"].split(",") if n))
    for found in _ARRAY.finditer(types)
  ]


def size(types: str, everywhere: bool = False) -> int:
  """Bytes of a type's arrays in main memory; those that a TPU keeps on the chip (`S(1)`) if `everywhere`."""
  total = 0
  for found in _ARRAY.finditer(types):
    if everywhere or "S(" not in (found["layout"] or ""):
      shape = [int(n) for n in found["sizes"].split(",") if n]
      total += _BYTES.get(found["dtype"], 0) * math.prod(shape)
  return total


@dataclasses.dataclass(frozen=True)
class Operation:
  """One operation of a computation.

  Attributes:
    name, kind: its name, and what it does ('fusion', 'all-reduce').
    result: the type's text.
    operands: names of what it reads.
    rest: the text from the operands on, with all attributes.
    is_root: whether it is its computation's result.
  """

  name: str
  kind: str
  result: str
  operands: tuple[str, ...]
  rest: str
  is_root: bool

  def attribute(self, name: str) -> str | None:
    """The name of a computation that the operation calls as `name`, such as 'body'."""
    found = re.search(rf"\b{name}=%([\w.\-]+)", self.rest)
    return found and found[1]

  def called(self) -> list[str]:
    """The computations that run once each time the operation does; of a conditional, all branches."""
    if self.kind in ("async-update", "async-done"):
      return []  # they go on with, and end, what async-start has called
    if self.kind == "conditional":
      branches = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
      named = branches[1] if branches else self.rest.split("), ", 1)[1]
      return re.findall(r"%([\w.\-]+)", named.split("metadata")[0])
    called = self.attribute("to_apply" if self.kind == "call" else "calls")
    return [called] if called else []

  @property
  def source(self) -> str:
    """What the operation comes from, as JAX names it; its own name if there is no such note."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else self.name


class Program:
  """The computations of a program, and how often each runs."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Operation]] = {}
    self.entry = ""
    # The results, as paths into a tuple, that are written where an argument was.
    self.in_place: set[tuple[int, ...]] = set()
    current: dict[str, Operation] = {}
    for line in text.splitlines():
      if line.startswith("HloModule"):
        self.in_place = _aliases(line)
      elif header := _HEADER.match(line):
        current = self.computations.setdefault(header[2], {})
        self.entry = header[2] if header[1] else self.entry
      elif match := _OPERATION.match(line):
        root, name, result, kind, rest = match.groups()
        operands = tuple(re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
        current[name] = Operation(name, kind, result, operands, rest, bool(root))

  @functools.cached_property
  def runs(self) -> dict[str, int]:
    """How often each computation runs, those inside of fusions included."""
    times: collections.Counter[str] = collections.Counter()

    def visit(name: str, count: int) -> None:
      times[name] += count
      for operation in self.computations[name].values():
        if operation.kind == "while":
          visit(operation.attribute("body"), count * self._trips(operation))
        for called in operation.called():
          visit(called, count)

    visit(self.entry, 1)
    return dict(times)

  def _trips(self, loop: Operation) -> int:
    """Iterations of a loop that counts from zero to a constant; 1 where it is no such loop."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
      return int(known[1])
    condition = self.computations[loop.attribute("condition")]
    bounds = [
      int(found[1])
      for operation in condition.values()
      if operation.kind == "constant" and (found := re.match(r"(\d+)\)", operation.rest))
    ]
    return (len(bounds) == 1 and bounds[0]) or 1

  def in_sequence(self) -> list[tuple[str, int]]:
    """The computations that are not inside of a fusion, and how often each runs."""
    fused = {
      operation.attribute("calls")
      for operations in self.computations.values()
      for operation in operations.values()
      if operation.kind == "fusion"
    }
    return [(name, times) for name, times in self.runs.items() if name not in fused]

  def traffic(self, loops: bool = True, everywhere: bool = False) -> dict[str, int]:
    """Bytes of main memory that operations read and write, by source, the largest first.

    Operands and results of each operation; of slices only the slice, of updates in place only the
    update. A Pallas kernel counts each of its arrays once.

    Args:
      loops: whether a loop's body counts as often as it runs; else once.
      everywhere: count what lies in a TPU's own memory too, as XLA does.
    """
    by_source: collections.Counter[str] = collections.Counter()
    for name, times in self.in_sequence():
      operations = self.computations[name]
      for operation in operations.values():
        if operation.kind in _FREE or "-done" in f"{operation.kind} {operation.name}":
          continue  # what was begun has been counted
        moved = (times if loops else 1) * self._moved(operation, operations, everywhere)
        by_source[f"{operation.kind}: {operation.source}"] += moved
    return dict(by_source.most_common())

  def _moved(self, operation: Operation, operations: dict[str, Operation], everywhere: bool) -> int:
    measure = functools.partial(size, everywhere=everywhere)
    called = operation.attribute("calls")
    if operation.kind == "fusion" and called:
      return _moved_by_fusion(self.computations[called], measure)
    read = sum(measure(operations[o].result) for o in operation.operands if o in operations)
    written = measure(operation.result)
    if operation.kind == "dynamic-slice":
      return 2 * written
    if operation.kind == "dynamic-update-slice":
      return 2 * measure(operations[operation.operands[1]].result)
    if _is_library_product(operation):  # what it gives stands before its workspace
      return read + measure(operation.result.split(", s8[")[0])
    if operation.kind == "copy-start":  # its result names the array that it reads once more
      return max(read, written - read) + min(read, written - read)
    return read + written

  def flops(self, loops: bool = True) -> int:
    """Floating-point operations of all matrix products and convolutions.

    Args:
      loops: whether a loop's body counts as often as it runs; else once.
    """
    return sum(
      (times if loops else 1) * self._product(operation, self.computations[name])
      for name, times in self.runs.items()
      for operation in self.computations[name].values()
      if operation.kind in ("dot", "convolution") or _is_library_product(operation)
    )

  def _product(self, operation: Operation, operations: dict[str, Operation]) -> int:
    _, result = arrays(operation.result)[0]  # a library's product has its workspace beside it
    left, right = (arrays(operations[name].result)[0][1] for name in operation.operands[:2])
    if operation.kind != "convolution":
      contracting = _CONTRACTED.search(operation.rest)[1].replace('"', "")
      return 2 * math.prod(result) * math.prod(left[int(d)] for d in contracting.split(",") if d)
    return _convolution_flops(operation.rest, left, right, result)


def _is_library_product(operation: Operation) -> bool:
  target = re.search(r'custom_call_target="([^"]*)"', operation.rest)
  return target is not None and target[1] in _LIBRARY_PRODUCTS


def _aliases(header: str) -> set[tuple[int, ...]]:
  """The paths of results in `input_output_alias={ {0}: (0, {}, may-alias), {1,2}: ... }`."""
  _, _, listed = header.partition("input_output_alias={")
  listed = listed.partition(" }")[0]
  return {
    tuple(int(n) for n in path.split(",") if n.strip())
    for path in re.findall(r"\{([\d, ]*)\}: \(", listed)
  }


def _moved_by_fusion(body: dict[str, Operation], measure: Callable[[str], int]) -> int:
  updates = [o for o in body.values() if o.kind == "dynamic-update-slice"]
  in_place, total = {update.operands[0] for update in updates}, 0
  for operation in body.values():
    whole = measure(operation.result)
    if operation.kind == "parameter" and operation.name not in in_place:
      uses = [o for o in body.values() if operation.name in o.operands]
      # A fusion inside a fusion that has one argument is a slice or a change of layout.
      sliced = uses and all(o.kind in ("slice", "dynamic-slice", "fusion") for o in uses)
      total += min(whole, sum(measure(o.result) for o in uses)) if sliced else whole
    if operation.is_root and not updates:
      total += whole
  return total + sum(2 * measure(body[update.operands[1]].result) for update in updates)


def _convolution_flops(attributes: str, left, right, result) -> int:
  """Two operations per pair of an input and a weight that meet; padding meets nothing."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
  window = re.search(r"window=\{([^}]*)\}", attributes)
  settings = dict(part.split("=") for part in window[1].split()) if window else {}
  spatial = [label for label in labels[1] if label.isdigit()]

  def option(name: str, index: int, default: int) -> int:
    return int(settings[name].split("x")[index]) if name in settings else default

  met = 1
  for index, label in enumerate(spatial):
    taps, outputs = option("size", index, 1), result[labels[3].index(label)]
    inputs = left[labels[1].index(label)]
    stride, spread = option("stride", index, 1), option("rhs_dilate", index, 1)
    gap = option("lhs_dilate", index, 1)
    low = int(settings["pad"].split("x")[index].split("_")[0]) if "pad" in settings else 0
    if taps == outputs == 1:
      continue
    end = (inputs - 1) * gap + 1
    positions = (o * stride - low + t * spread for o in range(outputs) for t in range(taps))
    met *= sum(0 <= position < end and position % gap == 0 for position in positions)
  channels = right[labels[2].index("i")]
  groups = re.search(r"batch_group_count=(\d+)", attributes)
  rows = left[labels[1].index("b")] // (int(groups[1]) if groups else 1)
  return 2 * rows * channels * right[labels[2].index("o")] * met
