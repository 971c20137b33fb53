"""The cells of a sweep: a value for each axis, from a grid or drawn at random."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from base.errors import UserError
from base.wording import plural

# The axis of gin files: each cell adds one to its configuration.
FILE = "file"
# Digits of a drawn number: enough to tell draws apart, and short in a folder's name.
_DIGITS = 3
_MOST_CELLS = 10_000
# A folder's name may have 255 bytes; the files in it need none of them.
_LONGEST_NAME = 120


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers between two ends, both included, to draw from.

  Attributes:
    low, high: the ends.
    log: whether the logarithm is uniform, as for learning rates.
  """

  low: float
  high: float
  log: bool

  def draw(self, random: np.random.Generator) -> str:
    """Draws a number, as gin text."""
    low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
    drawn = random.uniform(low, high)
    rounded = float(f"{math.exp(drawn) if self.log else drawn:.{_DIGITS}g}")
    return repr(min(max(rounded, self.low), self.high))


@dataclasses.dataclass(frozen=True)
class SweptAxis:
  """An axis of a sweep.

  Attributes:
    name: a macro or a parameter of the gin files, or `FILE`.
    values: the values as gin text, or a range to draw from.
  """

  name: str
  values: tuple[str, ...] | Range

  @property
  def numbers(self) -> dict[str, float] | None:
    """The values' numbers by text; None if one is no number."""
    if isinstance(self.values, Range):
      return None
    try:
      return {text: float(text) for text in self.values}
    except ValueError:
      return None


@dataclasses.dataclass(frozen=True)
class Cell:
  """A run of a sweep.

  Attributes:
    choices: the value of each axis as gin text, by the axis's name.
  """

  choices: tuple[tuple[str, str], ...]

  @property
  def files(self) -> list[str]:
    """Gin files that the cell adds after those of the sweep."""
    return [text for name, text in self.choices if name == FILE]

  @property
  def bindings(self) -> list[str]:
    """Arguments that the cell adds to a command."""
    return [f"--gin.{name}={text}" for name, text in self.choices if name != FILE]

  @property
  def folder(self) -> str:
    """Name of the run directory: the choices, in characters that every file system and shell take.

    Where that leaves something out, a checksum of the choices keeps names apart.
    """
    parts = [(n, Path(text).stem if n == FILE else text.strip("'")) for n, text in self.choices]
    name = ",".join(f"{n}={text}" for n, text in parts)
    safe = re.sub(r"[^A-Za-z0-9.,=+_-]+", "-", name)[:_LONGEST_NAME]
    return safe if safe == name else f"{safe}-{zlib.crc32(repr(self.choices).encode()):08x}"

  def __str__(self) -> str:
    return ", ".join(f"{name}={text}" for name, text in self.choices)


def axis_argument(text: str) -> SweptAxis:
  """Type of an argument that is an axis: `NAME=1,2,3`, or `NAME=log:LOW:HIGH`."""
  name, equals, values = text.partition("=")
  if not equals or not re.fullmatch(r"[A-Za-z_][\w./]*", name):
    raise argparse.ArgumentTypeError(
      f"{text!r} must be a name and its values, such as LEARNING_RATE=1e-3,2e-3"
    )
  kind, _, ends = values.partition(":")
  if kind in ("log", "uniform"):
    return SweptAxis(name, _range(text, kind, ends))
  found = tuple(value.strip() for value in split(values))
  if "" in found:
    raise argparse.ArgumentTypeError(f"{text!r} has an empty value")
  different = [_number_of(value) for value in found]
  for value, number in zip(found, different, strict=True):
    if different.count(number) > 1:
      raise argparse.ArgumentTypeError(f"{text!r} has the value {value} more than once")
  if name == FILE and len({Path(value).stem for value in found}) < len(found):
    raise argparse.ArgumentTypeError(
      f"{text!r} has two files of one name, by which the runs are called. Copy one under another"
    )
  return SweptAxis(name, found)


def _number_of(value: str) -> float | str:
  """The number that a value spells, else the value: 1e-3 and 0.001 would train one run twice."""
  try:
    return float(value)
  except ValueError:
    return value


def _range(text: str, kind: str, ends: str) -> Range:
  try:
    low, high = map(float, ends.split(":"))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r} must have two numbers as its ends, such as {kind}:1e-4:1e-2"
    ) from None
  if not (math.isfinite(high - low) and low < high):
    raise argparse.ArgumentTypeError(f"{text!r}: the first end must be below the second")
  if kind == "log" and low <= 0:
    raise argparse.ArgumentTypeError(f"{text!r}: the ends of a log range must be above 0")
  return Range(low, high, kind == "log")


def split(values: str) -> list[str]:
  """Splits values at the commas that are in no quotes and no brackets."""
  found, depth, quote, start = [], 0, "", 0
  for place, letter in enumerate(values):
    if quote:
      quote = "" if letter == quote else quote
    elif letter in "'\"":
      quote = letter
    elif letter in "([{":
      depth += 1
    elif letter in ")]}":
      depth -= 1
    elif letter == "," and not depth:
      found.append(values[start:place])
      start = place + 1
  return [*found, values[start:]]


def grid(axes: Sequence[SweptAxis]) -> list[Cell]:
  """Returns a cell for every combination of values; the last axis changes first.

  Raises:
    UserError: an axis is a range, an axis is given twice, there are too many cells, or two of them
      would share a folder.
  """
  _require_different(axes)
  lists = []
  for axis in axes:
    if isinstance(axis.values, Range):
      raise UserError(
        f"{axis.name} has a range, from which a grid takes nothing. Give its values, such as "
        f"--over {axis.name}=1e-3,2e-3, or the number of draws, such as --random=20."
      )
    lists.append([(axis.name, value) for value in axis.values])
  count = math.prod(map(len, lists))
  if count > _MOST_CELLS:
    raise UserError(
      f"the grid has {count:,} cells, more than {_MOST_CELLS:,}. Name fewer values, or draw some "
      "of them with --random=20."
    )
  cells = [Cell(choices) for choices in itertools.product(*lists)]
  _require_folders(cells)
  return cells


def drawn(axes: Sequence[SweptAxis], count: int, seed: int) -> list[Cell]:
  """Returns cells whose values are drawn independently; more draws keep the first ones.

  Cells that were drawn before are drawn again, so that all differ.

  Raises:
    UserError: an axis is given twice, there are fewer different cells, or two of them would share a
      folder.
  """
  _require_different(axes)
  cells: dict[Cell, None] = {}
  random = np.random.default_rng(seed)
  for _ in range(100 * count):
    choices = [
      axis.values.draw(random)
      if isinstance(axis.values, Range)
      else axis.values[random.integers(len(axis.values))]
      for axis in axes
    ]
    cells[Cell(tuple((axis.name, text) for axis, text in zip(axes, choices, strict=True)))] = None
    if len(cells) == count:
      _require_folders(cells)
      return list(cells)
  raise UserError(
    f"the axes have {plural(len(cells), 'different cell')}, too few for --random={count}. Lower "
    "it, or leave it out for the grid of all."
  )


def _require_different(axes: Sequence[SweptAxis]) -> None:
  names = [axis.name for axis in axes]
  for name in names:
    if names.count(name) > 1:
      raise UserError(f"--over {name} is given more than once. Name all its values in one.")


def _require_folders(cells: Iterable[Cell]) -> None:
  """Raises UserError if two cells have one folder, as `x` and `'x'`, or `1` and `'1'`, do."""
  found: dict[str, Cell] = {}
  for cell in cells:
    other = found.setdefault(cell.folder, cell)
    if other is not cell:
      raise UserError(
        f"{other} and {cell} would train in one folder, {cell.folder}. Leave one of them out, or "
        "give it another --output."
      )
