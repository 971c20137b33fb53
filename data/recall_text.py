"""Recall tasks in text: phone book look-up, and a pass key at any depth of irrelevant text."""

from __future__ import annotations

import dataclasses

import numpy as np

from base.ranges import Count, CountFromZero, Share
from data.corpora import CorpusError
from data.recall import RecallExample, RecallTask
from data.tokenizers import Tokenizer

_FIRST = (
  "Ada Alan Alice Amir Ana Anton Asha Ben Boris Carla Chen Clara Dana David Diego Dora Elena Emil "
  "Emma"
  " Enzo Erik Eva Fatima Felix Fiona Frank Gina Grace Hana Hassan Helen Hugo Ida Igor Ines Ivan "
  "Jack Jana"
  " Jin Jonas Julia Karim Kate Kenji Lars Laura Leo Lina Liam Lucia Mara Maria Max Mei Milan Mina "
  "Nadia"
  " Nils Nina Noah Nora Olga Oscar Otto Paul Petra Priya Rafael Ravi Rosa Ruth Sam Sara Sergei "
  "Sofia Tara"
  " Theo Thomas Uma Vera Victor Wei Yara Yusuf Zoe"
)
_LAST = (
  "Abe Adler Ali Bach Baker Bauer Bell Berg Blanc Bose Brown Carter Chan Clark Costa Cruz Das Diaz "
  "Dubois"
  " Endo Evans Fischer Fox Garcia Gray Gupta Haas Hall Hansen Hill Ito Jensen Jones Kaya Khan Kim "
  "Klein"
  " Kovacs Kumar Lang Lee Lopez Lund Marin Meyer Mori Moore Nagy Novak Okafor Olsen Patel Perez "
  "Popov"
  " Quinn Ramos Reed Rossi Roy Sato Schmidt Silva Singh Smith Suzuki Tanaka Taylor Torres Vega "
  "Virtanen"
  " Wagner Walker Wang Weber White Wolf Wood Wright Yang Young Zhang"
)
_FIRST_NAMES, _LAST_NAMES = _FIRST.split(), _LAST.split()


def _example(tokenizer: Tokenizer, before: str, source: str, after: str) -> RecallExample:
  """Makes the document before + source + after + source; the second `source` is the answer."""
  place = len(tokenizer.encode(before))
  prompt, answer = tokenizer.encode(before + source + after), tokenizer.encode(source)
  steps = np.arange(len(answer))
  tokens = np.array([*prompt, *answer, tokenizer.eos_id], np.int32)
  return RecallExample(tokens, len(prompt) + steps, place + steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phonebook(RecallTask):
  """Phone book look-up: name the number of a name.

  Jelassi et al. 2024 (arXiv 2402.01032, section 4.2), as section 6.2 and appendix H of the Griffin
  paper use it: lines of a name and a number of 10 digits, two of its entries again as examples,
  then a name. The score is the exact match of greedily generated text.

  Attributes:
    length: entries of the book.
    digits: digits of a number.
    shots: entries repeated as examples.
  """

  length: Count = 16
  digits: Count = 10
  shots: CountFromZero = 2

  name = "phonebook"
  unit = "entries"
  generates = True

  def __post_init__(self):
    super().__post_init__()
    most = len(_FIRST_NAMES) * len(_LAST_NAMES)
    if not self.shots < self.length <= most or self.digits < 1 or self.shots < 0:
      raise CorpusError(
        f"invalid phone book: length={self.length} entries with shots={self.shots} and"
        f" digits={self.digits}: there must be more entries than shots, at most {most} of them, "
        "and at"
        " least one digit."
      )

  def draw(self, tokenizer: Tokenizer, rng: np.random.Generator, count: int) -> list[RecallExample]:
    """Draws books with one question each."""
    return [self._book(tokenizer, rng) for _ in range(count)]

  def _book(self, tokenizer: Tokenizer, rng: np.random.Generator) -> RecallExample:
    people = len(_FIRST_NAMES) * len(_LAST_NAMES)
    names = [
      f"{_FIRST_NAMES[n // len(_LAST_NAMES)]} {_LAST_NAMES[n % len(_LAST_NAMES)]}"
      for n in rng.choice(people, self.length, replace=False)
    ]
    numbers = [
      "".join(map(str, digits)) for digits in rng.integers(0, 10, (self.length, self.digits))
    ]
    asked, *shown = rng.choice(self.length, 1 + self.shots, replace=False)
    lines = [f"{name}: {number}\n" for name, number in zip(names, numbers, strict=True)]
    # The space belongs to the number: a SentencePiece model joins them.
    before = "".join(lines[:asked]) + f"{names[asked]}:"
    after = "\n" + "".join(lines[asked + 1 :]) + "\n" + "".join(lines[n] for n in shown)
    return _example(tokenizer, before, f" {numbers[asked]}", after + f"{names[asked]}:")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needle(RecallTask):
  """Pass key retrieval: name the key hidden in irrelevant text.

  The text is that of Mohtashami and Jaggi 2023 (arXiv 2305.16300, section 4.2); scores by depth
  follow Kamradt's 'needle in a haystack' (2023). The score is the exact match of greedily generated
  text.

  Attributes:
    length: characters of irrelevant text.
    digits: digits of the key.
    depth: share of the text before the key; None draws it uniformly.
  """

  length: Count = 256
  digits: Count = 5
  depth: Share | None = None

  name = "needle"
  unit = "characters"
  generates = True

  def __post_init__(self):
    super().__post_init__()
    if self.length < 0 or self.digits < 1 or not (self.depth is None or 0 <= self.depth <= 1):
      raise CorpusError(
        f"a needle with length={self.length}, digits={self.digits}, depth={self.depth}: the length"
        " must not be negative, there is at least one digit, and the depth is in [0, 1] or None."
      )

  def draw(self, tokenizer: Tokenizer, rng: np.random.Generator, count: int) -> list[RecallExample]:
    """Draws texts with a key each."""
    return [self._haystack(tokenizer, rng) for _ in range(count)]

  def _haystack(self, tokenizer: Tokenizer, rng: np.random.Generator) -> RecallExample:
    key = "".join(map(str, rng.integers(0, 10, self.digits)))
    depth = rng.random() if self.depth is None else self.depth
    place = round(depth * self.length)
    task = (
      "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
      "them."
      " I will quiz you about the important information there.\n"
    )
    hay = (
      "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
    )
    hay *= self.length // len(hay) + 1
    before = task + hay[:place] + "\nThe pass key is"
    after = f". Remember it. {key} is the pass key.\n" + hay[: self.length - place]
    question = "\nWhat is the pass key? The pass key is"
    return _example(tokenizer, before, f" {key}", after + question)
