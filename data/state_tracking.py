"""State tracking: the product of a sequence of group elements, generated from a seed.

A recall task in form (see `data.recall`), but nothing is looked up: the answer depends on every
symbol and, in groups that do not commute, on their order.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re

import numpy as np

from base.ranges import Count
from data.corpora import CorpusError
from data.recall import RecallExample, RecallTask, symbol_ids
from data.tokenizers import Tokenizer

# 120 elements; the next symmetric group has 720.
_LARGEST_SYMMETRIC = 5
_LARGEST_CYCLIC = 200


@functools.cache
def multiplication_table(group: str) -> np.ndarray:
  """Returns [g, g] int64: at [a, b] the number of the product 'first a, then b'; 0 is neutral.

  It is made once, because a training draws examples at every step, and cannot be written to.

  Args:
    group: 'Z' with a number m for addition modulo m (Z2 is parity), or 'S' with a number n for the
      permutations of n things, numbered in lexicographic order.

  Raises:
    CorpusError: there is no such group here.
  """
  match = re.fullmatch(r"([ZS])([1-9][0-9]{0,2})", group)
  kind, number = (match[1], int(match[2])) if match else ("", 0)
  if kind == "Z" and 2 <= number <= _LARGEST_CYCLIC:
    return _read_only(np.add.outer(np.arange(number), np.arange(number)) % number)
  if kind == "S" and 2 <= number <= _LARGEST_SYMMETRIC:
    elements = np.array(list(itertools.permutations(range(number))))
    # First a, then b: thing i goes to a[i], and from there to b[a[i]].
    products = elements[:, elements].transpose(1, 0, 2)
    weights = number ** np.arange(number)
    numbers = {code: index for index, code in enumerate((elements @ weights).tolist())}
    return _read_only(np.vectorize(numbers.__getitem__)(products @ weights))
  raise CorpusError(
    f"group={group!r} is none of Z2 to Z{_LARGEST_CYCLIC} (addition modulo the number) or S2 to "
    f"S{_LARGEST_SYMMETRIC} (permutations of so many things)."
  )


def _read_only(table: np.ndarray) -> np.ndarray:
  table.setflags(write=False)  # all callers share it
  return table


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateTracking(RecallTask):
  """State tracking: name the product of all group elements of the context.

  The word problem of a group, as Merrill et al. 2024 (arXiv 2404.08819) ask it of recurrent models;
  Z2 is parity, other Z add modulo a number, S3 and S5 compose permutations (also Grazzi et al.,
  arXiv 2411.12537, and Siems et al., arXiv 2502.10297). The elements are uniform; the last
  symbol asks for the answer. As in Deletang et al. 2022 (arXiv 2207.02098) lengths vary in training
  and only the whole product is asked for: a language model that read the states of its answers
  would need none of its own. (Others label each position, which needs targets that are not the next
  tokens.)

  Attributes:
    length: largest number of elements in the context.
    shortest: smallest number; None is `length`. Another length, to test at, is that length alone.
    group: 'Z2', 'Z5', 'S3', 'S5' and others; see `multiplication_table`.
  """

  length: Count = 40
  shortest: Count | None = 1
  group: str = "Z2"

  name = "state-tracking"
  unit = "elements"
  published = "arXiv 2404.08819"

  def __post_init__(self):
    super().__post_init__()
    multiplication_table(self.group)
    if not 1 <= (self.shortest or self.length) <= self.length:
      raise CorpusError(
        f"state tracking of shortest={self.shortest} to length={self.length} elements: the "
        f"shortest must be 1 to {self.length}."
      )

  @property
  def symbols(self) -> int:
    """Size of the vocabulary: the group's elements and the asking symbol."""
    return len(multiplication_table(self.group)) + 1

  @property
  def sizes(self) -> str:
    """The sizes of the contexts, in words."""
    shortest = self.shortest or self.length
    return super().sizes if shortest == self.length else f"{shortest:,} to {super().sizes}"

  def with_length(self, length: int) -> StateTracking:
    """Returns the same task with contexts of exactly this length."""
    return dataclasses.replace(self, length=length, shortest=None)

  def draw(self, tokenizer: Tokenizer, rng: np.random.Generator, count: int) -> list[RecallExample]:
    """Draws examples of n elements, the asking symbol, and the answer."""
    table = multiplication_table(self.group)
    sizes = rng.integers(self.shortest or self.length, self.length + 1, count)
    elements = rng.integers(0, len(table), (count, self.length))
    states = np.zeros((count, self.length + 1), np.int64)
    for place in range(self.length):
      states[:, place + 1] = table[states[:, place], elements[:, place]]
    ids, asking = symbol_ids(tokenizer, self.symbols), len(table)
    examples = []
    for row, size in enumerate(sizes):
      symbols = np.array([*elements[row, :size], asking, states[row, size]])
      tokens = np.append(ids[symbols], tokenizer.eos_id).astype(np.int32)
      # Everything since the first element counts.
      examples.append(RecallExample(tokens, np.array([size + 1]), np.array([0])))
    return examples
