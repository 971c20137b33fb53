"""Tasks of long texts: a question at the end of a context that is filled to a number of tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from base.ranges import Count
from data.corpora import CorpusError
from data.recall import RecallExample, RecallTask, Reference
from data.tokenizers import Tokenizer

# Names of tasks whose answers lie at many places, so that a depth tells nothing.
DEPTHLESS = ("common-words", "frequent-words")
# Tries to fill a context; each tokenizes the whole text.
_TRIES = 24


class Found(NamedTuple):
  """A text that an answer must contain.

  Attributes:
    text: the text.
    place: index of the character of the prompt where it stands.
  """

  text: str
  place: int


class Written(NamedTuple):
  """An example as text.

  Attributes:
    prompt: context and question, without a blank at its end.
    answer: what continues it, beginning with a blank.
    references: the texts of which the answer consists, in its order.
  """

  prompt: str
  answer: str
  references: tuple[Found, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongTextTask(RecallTask):
  """Base class of tasks with a context of `length` tokens of any tokenizer.

  BOS, context, question and the room for the answer together have at most so many tokens, and with
  another unit of the haystack they would have more. The score is the share of the references that a
  greedily generated text contains, in capitals or not (RULER's string match, arXiv 2404.06654,
  section 4).

  Attributes:
    length: tokens of context, question and room for the answer.
  """

  length: Count = 4096
  examples: Count = 4096
  heldout_examples: Count = 128

  # Tokens that a model may generate, as RULER has them; more if the true answer has more.
  room: ClassVar[int]
  # The fewest units of a haystack.
  least: ClassVar[int] = 1
  published = "arXiv 2404.06654"
  generates = True
  block = 1

  def write(self, rng: np.random.Generator, units: int) -> Written:
    """Writes an example with a haystack of so many units; equal generators give equal secrets."""
    raise NotImplementedError

  def draw(self, tokenizer: Tokenizer, rng: np.random.Generator, count: int) -> list[RecallExample]:
    """Draws examples of at most `length` tokens.

    Raises:
      CorpusError: `length` has no room for the smallest one, or there is no text.
    """
    return [self._filled(tokenizer, _seed(rng)) for _ in range(count)]

  def _filled(self, tokenizer: Tokenizer, seed: int) -> RecallExample:
    """Makes the example of a seed with as many units as fit."""

    def sized(units: int) -> tuple[int, _Tokens]:
      return self._sized(tokenizer, seed, units)

    fits, over = self.least, None
    size, found = self._smallest(tokenizer, seed)
    guess, slope = fits + 16, 0.0
    for _ in range(_TRIES):
      tried, other = sized(guess)
      # Of few units it may be far from the mean.
      slope = max((tried - size) / (guess - fits), slope / 2, 0.5)
      if tried <= self.length:
        fits, size, found = guess, tried, other
      else:
        over = guess
      if over == fits + 1:
        break
      guess = max(fits + int((self.length - size) / slope), fits + 1)
      if over is not None and guess >= over:
        guess = (fits + over) // 2
    return found.example(tokenizer)

  def _sized(self, tokenizer: Tokenizer, seed: int, units: int) -> tuple[int, _Tokens]:
    """Writes the example of a seed; returns its tokens with BOS and room too, and itself."""
    written = self.write(np.random.default_rng(seed), units)
    ids, answer = tokenizer.encode(written.prompt), tokenizer.encode(written.answer)
    room = max(self.room, len(answer) + 1)  # Its EOS too.
    return 1 + len(ids) + room, _Tokens(written, ids, answer, room)

  def _smallest(self, tokenizer: Tokenizer, seed: int) -> tuple[int, _Tokens]:
    size, found = self._sized(tokenizer, seed, self.least)
    if size > self.length:
      raise CorpusError(
        f"{self.name} has {size} tokens at least, more than length={self.length}. Give a longer "
        "one."
      )
    return size, found

  def require(self, tokenizer: Tokenizer) -> None:
    """Checks that each held-out example has room, without filling its context.

    Raises:
      CorpusError: see `draw`.
    """
    for block in range(self.heldout_examples):
      self._smallest(tokenizer, _seed(self.generator("heldout", block)))


def _seed(rng: np.random.Generator) -> int:
  return int(rng.integers(2**62))


class _Tokens(NamedTuple):
  """An example as text and as ids."""

  written: Written
  prompt: list[int]
  answer: list[int]
  room: int

  def example(self, tokenizer: Tokenizer) -> RecallExample:
    """Returns the example, with the places of its references in tokens."""
    prompt, answer, references = self.written
    sources = [len(tokenizer.encode(prompt[: found.place])) for found in references]
    # Where each reference begins in the answer, with the blank before it.
    places, starts = 0, []
    for found in references:
      places = answer.index(found.text, places)
      starts.append(len(tokenizer.encode(answer[: max(places - 1, 0)])))
      places += len(found.text)
    steps = np.arange(len(self.answer))
    own = np.clip(np.searchsorted(starts, steps, side="right") - 1, 0, None)
    repeated = np.array(sources)[own] + np.maximum(steps - np.array(starts)[own], 0)
    tokens = np.array([*self.prompt, *self.answer, tokenizer.eos_id], np.int32)
    return RecallExample(
      tokens,
      len(self.prompt) + steps,
      np.minimum(repeated, len(self.prompt) - 1),
      tuple(Reference(f.text, source) for f, source in zip(references, sources, strict=True)),
      self.room,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite(RecallTask):
  """Several tasks in turn, each with an equal share of the examples.

  Attributes:
    length: tokens of each context: it overrides those of the tasks.
    tasks: the tasks.
    names: a name for each, for figures.
  """

  length: Count = 4096
  examples: Count = 4096
  heldout_examples: Count = 1024
  tasks: Sequence[LongTextTask] = ()
  names: Sequence[str] = ()

  name = "long-text-suite"
  published = "arXiv 2404.06654"
  generates = True

  def __post_init__(self):
    super().__post_init__()
    if (
      not self.tasks or len(self.tasks) != len(self.names) or len(set(self.names)) < len(self.names)
    ):
      raise CorpusError(
        f"a suite of {len(self.tasks)} tasks with the names {', '.join(self.names) or '(none)'}: "
        "give at least one task, and each a name of its own."
      )

  def describe(self) -> dict[str, Any]:
    """Returns the names and what describes each task."""
    described = {
      name: task.with_length(self.length).describe()
      for name, task in zip(self.names, self.tasks, strict=True)
    }
    counts = {"examples": self.examples, "heldout_examples": self.heldout_examples}
    return {"corpus": self.name, "seed": self.seed, **counts, "tasks": described}

  def with_length(self, length: int) -> Suite:
    """Returns the same tasks at another length."""
    return dataclasses.replace(self, length=length)

  def texts(self) -> str:
    """Returns a digest of the texts of haystacks that are files; '' without any."""
    stacks: list[Any] = [getattr(task, "haystack", None) for task in self.tasks]
    told = {json.dumps(s.describe()) for s in stacks if getattr(s, "files", None) is not None}
    return hashlib.sha256("".join(sorted(told)).encode()).hexdigest()[:12] if told else ""

  def by_name(self) -> dict[str, LongTextTask]:
    """Returns each task at the suite's length, with its share of the examples."""
    count = len(self.tasks)
    return {
      name: dataclasses.replace(
        task,
        length=self.length,
        examples=-(-self.examples // count),
        heldout_examples=-(-self.heldout_examples // count),
        seed=self.seed,
      )
      for name, task in zip(self.names, self.tasks, strict=True)
    }

  def require(self, tokenizer: Tokenizer) -> None:
    """Checks that each held-out example of each task has room; see `LongTextTask.require`."""
    for task in self.by_name().values():
      task.require(tokenizer)

  def drawn(self, tokenizer: Tokenizer, split: str) -> Iterator[RecallExample]:
    """Yields the examples of a split: the first of each task, the second of each, and so on."""
    for group in zip(*(t.drawn(tokenizer, split) for t in self.by_name().values()), strict=True):
      yield from group
