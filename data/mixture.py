"""Several row files read as one."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from fractions import Fraction

from base.errors import UserError
from data.manifest import RowFileError
from data.rows import RowFiles
from data.tokenizers import Tokenizer

# No run has so many rows.
_ENDLESS = 2**48


class MixtureError(UserError, ValueError):
  """Weights of a mixture that cannot be used."""


def _shares(weights: Sequence[float]) -> tuple[float, ...]:
  total = sum(weights)
  if math.isinf(total):
    return _shares([w / max(weights) for w in weights])
  return tuple(w / total for w in weights)


def check(
  components: int,
  weights: Sequence[float] | None,
  schedule: Sequence[tuple[int, Sequence[float]]],
  most_tokens: Sequence[float | None] = (),
  names: Sequence[str] = (),
) -> None:
  """Checks the weights of a mixture.

  Args:
    components: number of components.
    weights: relative share of each from step 0 on; None if they are not known yet.
    schedule: pairs of a step and the weights from then on.
    most_tokens: the most tokens of each, None without a limit; empty limits none.
    names: a name for each; empty for none.

  Raises:
    MixtureError: they are not one number per component, or too different, or out of order.
  """
  for option, values in (("most_tokens", most_tokens), ("names", names)):
    if values and len(values) != components:
      raise MixtureError(
        f"{option}={list(values)} must be one for each of {components} components. Correct it."
      )
  if len(set(names)) < len(names):
    raise MixtureError(f"names={list(names)} must differ. Correct them.")
  if any(most is not None and most <= 0 for most in most_tokens):
    raise MixtureError(
      f"most_tokens={list(most_tokens)} must be above 0, or None for a component without a limit."
    )
  if not components or (
    weights is not None and (len(weights) != components or any(w <= 0 for w in weights))
  ):
    raise MixtureError(
      f"weights={list(weights or ())} must be one positive number for each of {components}"
      " components (at least one). Leave out a component that should not be drawn from."
    )
  before = 0
  for step, later in schedule:
    if step <= before:
      raise MixtureError(
        f"schedule={list(schedule)} must have steps that grow, from 1 on: {step} follows"
        f" {before}. Put them in order."
      )
    if len(later) != components or min(later) < 0 or not any(later):
      raise MixtureError(
        f"schedule: the weights from step {step} on, {list(later)}, must be one number from 0 on"
        f" for each of {components} components, and not all 0. Correct them."
      )
    before = step
  if most_tokens:
    for step, stage in ((0, weights or [1] * components), *schedule):
      if not any(w for w, most in zip(stage, most_tokens, strict=True) if most is None):
        raise MixtureError(
          f"most_tokens={list(most_tokens)}: from step {step} on, no component without a limit"
          " has a weight, and the others end. Give one None."
        )
  for stage in (*([weights] if weights else []), *(later for _, later in schedule)):
    lost = [w for w, share in zip(stage, _shares(stage), strict=True) if w and not share]
    if lost:
      raise MixtureError(
        f"weights={list(stage)}: {lost[0]} is nothing beside the others. Give a component that"
        " should not be drawn from no weight, and others more."
      )


def weights_of_sizes(tokens: Sequence[float], temperature: float) -> list[float]:
  """Returns weights proportional to tokens ** (1 / temperature), as in mT5 (section 3.1).

  At 1, parts are mixed by their size; at higher temperatures, small parts get more.
  """
  try:
    return [count ** (1 / temperature) for count in tokens]
  except OverflowError:
    return [(count / max(tokens)) ** (1 / temperature) for count in tokens]


class Stages:
  """Tells which row of which part each row of a scheduled mixture is.

  Row r of the mixture is a row of part i whose index is the number of earlier rows of that part, so
  that each part is read in its own order through all stages, and a run can start at any row. Within
  a stage, the first part takes every row at which floor(n * weight) grows, and the others share the
  remaining rows likewise; so its count is never a whole row away from its share. Where a part has
  had its most rows, another stage begins, without it.
  """

  def __init__(
    self,
    weights: Sequence[Sequence[float]],
    first_rows: Sequence[int],
    most_rows: Sequence[int | None] = (),
  ):
    """Sets the stages.

    Args:
      weights: the weights of each stage.
      first_rows: the first row of each stage, from 0 on.
      most_rows: the most rows of each part, None without a limit; empty limits none. A part without
        a limit must have a weight in each stage.
    """
    most = list(most_rows) or [None] * len(weights[0])
    self._first_rows, self._splits, self._before = [], [], []
    counts = [0] * len(weights[0])
    for number, stage in enumerate(weights):
      row = first_rows[number]
      end = first_rows[number + 1] if number + 1 < len(first_rows) else None
      while True:
        left = [None if m is None else m - c for m, c in zip(most, counts, strict=True)]
        splits = _splits([0 if x == 0 else w for w, x in zip(stage, left, strict=True)])
        self._first_rows.append(row)
        self._splits.append(splits)
        self._before.append(counts)
        limited = [(part, x) for part, x in enumerate(left) if x and stage[part]]
        rows = min((_rows_until(part, x, splits) for part, x in limited), default=None)
        if rows is None or row + rows > _ENDLESS or (end is not None and row + rows >= end):
          break
        counts = [a + b for a, b in zip(counts, _counts(rows, splits), strict=True)]
        row += rows
      if end is not None:
        counts = [a + b for a, b in zip(counts, _counts(end - row, splits), strict=True)]

  def place(self, row: int) -> tuple[int, int]:
    """Returns the part of a row, and the row's index among those of the part."""
    stage = bisect.bisect_right(self._first_rows, row) - 1
    row -= self._first_rows[stage]
    for part, (share, whole) in enumerate(self._splits[stage]):
      taken = row * share // whole
      if (row + 1) * share // whole > taken:
        return part, self._before[stage][part] + taken
      row -= taken
    raise AssertionError("the last part takes all rows that are left")


def _splits(weights: Sequence[float]) -> list[tuple[int, int]]:
  """Returns each part's share of the rows that the parts before it leave, as a fraction.

  Whole numbers, for products that are exact at any row.
  """
  last = max(i for i, weight in enumerate(weights) if weight)
  found = []
  for number, weight in enumerate(weights):
    left = sum(weights[number:])
    exact = Fraction(weight / left if left else 0)
    share = exact.limit_denominator(10**6)
    if share in (0, 1):  # a part with hardly any rows still has them
      share = exact
    found.append((1, 1) if number == last else share.as_integer_ratio())
  return found


def _rows_until(part: int, count: int, splits: list[tuple[int, int]]) -> int:
  """Returns after how many rows of a stage a part has had so many."""
  most = count
  while _counts(most, splits)[part] < count:
    most *= 2
    if most > _ENDLESS:
      return most
  return bisect.bisect_left(range(most), count, key=lambda rows: _counts(rows, splits)[part])


def _counts(rows: int, splits: Sequence[tuple[int, int]]) -> list[int]:
  """Returns how many of the first rows of a stage each part has."""
  found = []
  for share, whole in splits:
    found.append(rows * share // whole)
    rows -= found[-1]
  return found


def _names(parts: Sequence[RowFiles]) -> tuple[str, ...]:
  """Names parts by their corpora; a second one of a name is NAME_2."""
  found: list[str] = []
  for part in parts:
    source = part.manifest.source
    said = source.get("task") or source.get("dataset") or source.get("corpus") or "text"
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", str(said))
    numbers = (f"{name}_{number}" for number in itertools.count(2))
    found.append(next(n for n in itertools.chain([name], numbers) if n not in found))
  return tuple(found)


class MixedRows:
  """Row files mixed by weight, with the same tokenizer and row length.

  Attributes:
    parts: the row files.
    weights: share of each part among the rows of a training run; they sum to 1.
    schedule: first step and weights, which sum to 1, of the later stages of training; empty if the
      weights stay.
    most_rows: the most rows of each part in a run, None without a limit; empty limits none.
    names: a name for each part, for figures.
  """

  def __init__(
    self,
    parts: Sequence[RowFiles],
    weights: Sequence[float],
    schedule: Sequence[tuple[int, Sequence[float]]] = (),
    most_tokens: Sequence[float | None] = (),
    names: Sequence[str] = (),
  ):
    """Mixes `parts`.

    Args:
      parts: the row files.
      weights: relative share of each part, from step 0 on.
      schedule: pairs of a step and the weights from then on; a weight of 0 leaves a part out.
      most_tokens: at most so many tokens of each part are read in a run, None without a limit;
        empty limits none. The others then share its rows.
      names: a name for each part; empty takes those of the corpora.

    Raises:
      MixtureError: see `check`.
      RowFileError: the parts have different tokenizers or lengths.
    """
    check(len(parts), weights, schedule, most_tokens, names)
    for part in parts[1:]:
      if part.manifest.vocabulary != parts[0].manifest.vocabulary:
        raise RowFileError(
          f"{part.directory} and {parts[0].directory} cannot be mixed: their tokenizers are"
          f" {part.manifest.vocabulary} and {parts[0].manifest.vocabulary}."
          " Give every component the same tokenizer."
        )
      if part.sequence_length != parts[0].sequence_length:
        raise RowFileError(
          f"{part.directory} and {parts[0].directory} cannot be mixed: their rows hold"
          f" {part.sequence_length} and {parts[0].sequence_length} tokens."
          " Give every component the same sequence_length."
        )
    self.parts = tuple(parts)
    self.weights = _shares(weights)
    self.schedule = tuple((step, _shares(later)) for step, later in schedule)
    self.most_rows = tuple(
      None if most is None else max(1, int(most * len(part) / part.counts.tokens))
      for part, most in zip(parts, most_tokens, strict=bool(most_tokens))
    )
    self.names = tuple(names) or _names(self.parts)

  @property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer that all parts share."""
    return self.parts[0].tokenizer

  @property
  def sequence_length(self) -> int:
    """Tokens per row."""
    return self.parts[0].sequence_length

  def __len__(self) -> int:
    return sum(len(part) for part in self.parts)

  @property
  def bytes_per_token(self) -> float:
    """Mean bytes of text per target, weighted."""
    means = (part.bytes_per_token for part in self.parts)
    return sum(w * mean for w, mean in zip(self.weights, means, strict=True))

  @property
  def tokens_per_target(self) -> float:
    """Mean tokens per target in the loss, weighted."""
    means = (part.tokens_per_target for part in self.parts)
    return sum(w * mean for w, mean in zip(self.weights, means, strict=True))

  def text_bytes(self, rows: int | None = None) -> int:
    """Returns the bytes of text in the first `rows` rows, the parts one after another."""
    total = 0
    left = len(self) if rows is None else rows
    for part in self.parts:
      total += part.text_bytes(max(left, 0))
      left -= len(part)
    return total

  @property
  def fingerprint(self) -> str:
    """Identifies the content: equal fingerprints mean equal batches."""
    identity: list = [
      (part.fingerprint, w) for part, w in zip(self.parts, self.weights, strict=True)
    ]
    if self.schedule:
      identity.append(self.schedule)
    if self.most_rows:
      identity.append(("most rows", self.most_rows))
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
