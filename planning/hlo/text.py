"""Parses the text of a compiled program (`compiled.as_text()`)."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from typing import TypeVar, cast

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_HEADER = re.compile(r"(ENTRY )?%(\S+) \(.*\{$")
_OPERATION = re.compile(r"\s*(ROOT )?%(\S+) = (.*?) ([a-z][a-z\-]*)\((.*)$")
# A name, or in newer texts (JAX 0.12) an element of its tuple: %while.3#1.
_OPERAND = re.compile(r"%([\w.\-]+(?:#\d+)*)")
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d+|pred)\[(?P<sizes>[\d,]*)\](?P<layout>\{[^}]*\})?")
# A layout: its axes, innermost first, and its tiles.
_TILES = re.compile(r"\{(?P<order>[\d,]*):T(?P<tiles>(?:\([\d,]+\))+)")
# Contracting dimensions of a dot, and of a library call in its backend_config.
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:ension)?s(?:=|":)[{\[]([\d,"]*)[}\]]')
# Matrix products that run as library calls on GPUs.
LIBRARY_PRODUCTS = ("__cublas$gemm", "__cublas$lt$matmul")

Array = tuple[str, tuple[int, ...]]


def arrays(types: str) -> list[Array]:
  """(element type, shape) of each array in a type's text."""
  return [
    (found["dtype"], tuple(int(n) for n in found["sizes"].split(",") if n))
    for found in _ARRAY.finditer(types)
  ]


_Found = TypeVar("_Found")


def _found(found: _Found | None) -> _Found:
  """Narrows a match that XLA's text always has."""
  return cast(_Found, found)


def types(text: str) -> list[str]:
  """Splits a type's text into the types of its arrays, layouts included."""
  return [found[0] for found in _ARRAY.finditer(text)]


def layout(text: str) -> str:
  """Returns the layout of the first array in a type's text, with braces; '' if it has none."""
  return _found(_ARRAY.search(text))["layout"] or ""


def is_on_chip(text: str) -> bool:
  """Whether an array lies outside main memory: on chip (`S(1)` on TPUs), or on the host."""
  return "S(" in layout(text)


def size(text: str) -> int:
  """Bytes of a type's arrays, with the padding of tiled TPU layouts such as T(8,128)."""
  return sum(
    _BYTES.get(found["dtype"], 0) * math.prod(_padded(found)) for found in _ARRAY.finditer(text)
  )


def _padded(array: re.Match[str]) -> list[int]:
  sizes = [int(n) for n in array["sizes"].split(",") if n]
  found = _TILES.match(array["layout"] or "")
  if not found:
    return sizes
  sizes = [sizes[int(axis)] for axis in reversed(found["order"].split(",")) if axis]
  for tile in re.findall(r"\(([\d,]+)\)", found["tiles"]):
    inner = [int(n) for n in tile.split(",")]
    sizes = [1] * (len(inner) - len(sizes)) + sizes
    outer, sizes = sizes[: -len(inner)], sizes[-len(inner) :]
    # A nested tile divides the last dimensions of the tile before it.
    sizes = [*outer, *(-(-n // m) for n, m in zip(sizes, inner, strict=True)), *inner]
  return sizes


@dataclasses.dataclass(frozen=True)
class Operation:
  """One operation of a computation.

  Attributes:
    name, kind: its name, and its opcode ('fusion', 'all-reduce').
    result: text of the result's type.
    operands: names of its operands.
    rest: text from the operands on, with all attributes.
    is_root: whether it is its computation's result.
  """

  name: str
  kind: str
  result: str
  operands: tuple[str, ...]
  rest: str
  is_root: bool

  def attribute(self, name: str) -> str | None:
    """Returns the computation called as `name`, such as 'body'; None if there is none."""
    found = re.search(rf"\b{name}=%([\w.\-]+)", self.rest)
    return found and found[1]

  def computation(self, name: str) -> str:
    """Returns the computation called as `name`, which the operation must have."""
    return _found(self.attribute(name))

  def numbers(self, *names: str) -> list[int]:
    """Returns the numbers of an attribute such as `slice_sizes={1,512}`."""
    listed = (re.search(rf"\b{name}=\{{([\d,]*)\}}", self.rest) for name in names)
    return [int(n) for found in listed if found for n in found[1].split(",") if n]

  @functools.cached_property
  def target(self) -> str | None:
    """The target of a custom call."""
    found = re.search(r'custom_call_target="([^"]*)"', self.rest)
    return found and found[1]

  @property
  def index(self) -> int:
    """The place in the tuple of a get-tuple-element."""
    return int(_found(re.search(r"index=(\d+)", self.rest))[1])

  @property
  def place(self) -> int:
    """The number of a parameter."""
    return int(self.rest.split(")")[0])

  @property
  def aliases(self) -> dict[int, int]:
    """Maps the number of each result that aliases an operand to the operand's number."""
    found = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", self.rest)
    pairs = re.findall(r"\{(\d*)\}: \((\d+), ", found[1]) if found else ()
    return {int(result or 0): int(operand) for result, operand in pairs}

  def called(self) -> list[str]:
    """The computations that run whenever the operation does; all branches of a conditional."""
    if self.kind in ("async-update", "async-done"):
      return []  # async-start has called the computation already
    if self.kind == "conditional":
      branches = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
      named = branches[1] if branches else self.rest.split("), ", 1)[1]
      return re.findall(r"%([\w.\-]+)", named.split("metadata")[0])
    called = self.attribute("to_apply" if self.kind == "call" else "calls")
    return [called] if called else []

  @property
  def offloaded(self) -> list[str]:
    """The computations that a custom call stands for: what a TPU's SparseCore runs."""
    found = re.search(r"called_computations=\{([^}]*)\}", self.rest)
    return re.findall(r"%([\w.\-]+)", found[1]) if found else []

  @functools.cached_property
  def cycles(self) -> int | None:
    """The TPU compiler's estimate of the cycles that it takes; None where it gives none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
    # The largest integer stands for "not known".
    return int(found[1]) if found and int(found[1]) < 2**60 else None

  @property
  def source(self) -> str:
    """JAX's name for the operation's origin; the operation's own name without one."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else self.name


class HloProgram:
  """A parsed program: its computations, and how often each runs.

  Attributes:
    computations: by name, the operations of each computation in the order of the text.
    entry: the computation that runs first.
    is_scheduled: whether the order of the text is the order in which the device runs it.
    in_place: results that are aliased to an argument, as paths into the result tuple.
  """

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Operation]] = {}
    self.entry = ""
    self.is_scheduled = False
    self.in_place: set[tuple[int, ...]] = set()
    current: dict[str, Operation] = {}
    # A kernel's metadata is JSON with line breaks.
    for line in re.sub(r'\n(?="|\}[,}])', "", text).splitlines():
      if line.startswith("HloModule"):
        self.in_place = _aliases(line)
        self.is_scheduled = "is_scheduled=true" in line
      elif header := _HEADER.match(line):
        current = self.computations.setdefault(header[2], {})
        self.entry = header[2] if header[1] else self.entry
      elif match := _OPERATION.match(line):
        root, name, result, kind, rest = match.groups()
        read = _OPERAND.findall(rest.split("), ")[0])
        operands = tuple(_operation_of(operand, current) for operand in read)
        current[name] = Operation(name, kind, result, operands, rest, bool(root))

  @functools.cached_property
  def runs(self) -> dict[str, int]:
    """Number of runs of each computation, including those inside fusions."""
    times: collections.Counter[str] = collections.Counter()

    def visit(name: str, count: int) -> None:
      times[name] += count
      for operation in self.computations[name].values():
        if operation.kind == "while":
          visit(operation.computation("body"), count * self.trips(operation))
        for called in operation.called():
          visit(called, count)

    visit(self.entry, 1)
    return dict(times)

  def trips(self, loop: Operation) -> int:
    """Iterations of a loop that counts from zero to a constant; 1 for other loops."""
    return self._known_trips(loop) or 1

  def has_known_trips(self, loop: Operation) -> bool:
    """Whether a loop counts from zero to a constant."""
    return self._known_trips(loop) is not None

  def _known_trips(self, loop: Operation) -> int | None:
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
      return int(known[1])
    condition = self.computations[loop.computation("condition")]
    bounds = [
      int(found[1])
      for operation in condition.values()
      if operation.kind == "constant" and (found := re.match(r"(\d+)\)", operation.rest))
    ]
    return bounds[0] if len(bounds) == 1 else None

  def in_sequence(self) -> list[tuple[str, int]]:
    """Number of runs of each computation that is not inside a fusion."""
    fused = {
      operation.attribute("calls")
      for operations in self.computations.values()
      for operation in operations.values()
      if operation.kind == "fusion"
    }
    return [(name, times) for name, times in self.runs.items() if name not in fused]

  def flops(self, loops: bool = True) -> int:
    """Counts the FLOPs of all matrix products and convolutions.

    Args:
      loops: multiply a loop's body by its trip count; else count it once.
    """
    return sum(
      (times if loops else 1) * self.product_flops(operation, name)
      for name, times in self.runs.items()
      for operation in self.computations[name].values()
    )

  def product_flops(self, operation: Operation, name: str) -> int:
    """FLOPs of an operation of computation `name` if it is a product or a convolution; else 0."""
    if operation.kind in ("dot", "convolution") or operation.target in LIBRARY_PRODUCTS:
      return self._product(operation, self.computations[name])
    return 0

  def _product(self, operation: Operation, operations: dict[str, Operation]) -> int:
    _, result = arrays(operation.result)[0]  # a library call also returns its workspace
    left, right = (arrays(operations[name].result)[0][1] for name in operation.operands[:2])
    if operation.kind != "convolution":
      contracting = _found(_CONTRACTED.search(operation.rest))[1].replace('"', "")
      return 2 * math.prod(result) * math.prod(left[int(d)] for d in contracting.split(",") if d)
    return _convolution_flops(operation.rest, left, right, result)


def _operation_of(operand: str, operations: dict[str, Operation]) -> str:
  """Returns the name of an operand's operation; for `while.3#1` adds the get-tuple-element that
  older texts have.
  """
  whole, _, index = operand.rpartition("#")
  if not whole:
    return operand
  name = f"get-tuple-element.{operand}"
  if name not in operations:
    source = _operation_of(whole, operations)
    result = _elements(operations[source].result)[int(index)]
    rest = f"%{source}), index={index}"
    operations[name] = Operation(name, "get-tuple-element", result, (source,), rest, False)
  return name


def _elements(types: str) -> list[str]:
  """Splits the text of a tuple's type into its elements, which may be tuples themselves."""
  found, depth, start = [], 0, 1
  for place, letter in enumerate(types):
    if letter in "([{":
      depth += 1
    elif letter in ")]}":
      depth -= 1
    if (letter == "," and depth == 1) or depth == 0:
      found.append(types[start:place].strip())
      start = place + 1
    if depth == 0:
      break
  return found


def _aliases(header: str) -> set[tuple[int, ...]]:
  """Parses the result paths of `input_output_alias={ {0}: (0, {}, may-alias), {1,2}: ... }`."""
  _, _, listed = header.partition("input_output_alias={")
  listed = listed.partition(" }")[0]
  return {
    tuple(int(n) for n in path.split(",") if n.strip())
    for path in re.findall(r"\{([\d, ]*)\}: \(", listed)
  }


def _convolution_flops(attributes: str, left, right, result) -> int:
  """FLOPs of a convolution: two per multiplied input and weight; padding is not multiplied."""
  labels = _found(re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes))
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
