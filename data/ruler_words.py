"""Common and frequent words of long lists, as RULER defines them.

Hsieh et al. 2024 (arXiv 2404.06654, section 3, appendix B, and the authors' generators and task
file), with sentences and words of our own.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from base.ranges import Count, CountFromZero, Factor
from data import word_lists
from data.corpora import CorpusError
from data.long_text import Found, LongTextTask, Written

# Below so many tokens RULER's lists have fewer repetitions.
_LONG = 4096
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_NOISE = "..."


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonWords(LongTextTask):
  """Common words: name the words that come most often in a numbered list.

  The list has `common` words many times and all others a few times, in random order; the context is
  filled by others. RULER's sizes are 10 words 30 times and others 3 times; 6 times and once below
  4,096 tokens.

  Attributes:
    common: number of words to name.
    common_times, other_times: how often each comes; None is RULER's.
    shots: examples before, of 40 words 10 and 3 times (below 4,096 tokens: of 20, 3 times and
      once).
  """

  common: Count = 10
  common_times: Count | None = None
  other_times: Count | None = None
  shots: CountFromZero = 1

  name = "common-words"
  room = 120

  def __post_init__(self):
    super().__post_init__()
    common, other = self._times()
    if common <= other:
      raise CorpusError(
        f"common words {common} times, others {other} times: the common ones must come more often."
      )

  def _times(self) -> tuple[int, int]:
    common, other = (30, 3) if self.length >= _LONG else (6, 1)
    return self.common_times or common, self.other_times or other

  def write(self, rng: np.random.Generator, units: int) -> Written:
    """Writes an example with `units` other words; see `LongTextTask.write`."""
    before = ""
    words, times, other = (40, 10, 3) if self.length >= _LONG else (20, 3, 1)
    for _ in range(self.shots):
      shot = self._written(rng, max(words - self.common, 1), times, other)
      before += shot.prompt + shot.answer + "\n\n"
    own = self._written(rng, units, *self._times())
    found = tuple(Found(one.text, one.place + len(before)) for one in own.references)
    return Written(before + own.prompt, own.answer, found)

  def _written(self, rng: np.random.Generator, units: int, times: int, other: int) -> Written:
    words = word_lists.single_words(rng, self.common + units)
    common = words[: self.common]
    listed = rng.permutation(common * times + words[self.common :] * other).tolist()
    begin = "In this numbered list some words come more often than the others. Which?\n"
    context = _numbered(listed)
    prompt = (
      f"{begin}{context}\nQuestion: which {self.common} words come most often?\n"
      f"Answer: the {self.common} words that come most often are"
    )
    places = {word: begin_of for word, begin_of in _first_places(listed).items() if word in common}
    found = tuple(Found(word, len(begin) + places[word]) for word in common)
    return Written(prompt, " " + _numbered(common), found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrequentWords(LongTextTask):
  """Frequent words: name the three coded words that come most often.

  The word of rank k comes n k^-alpha / zeta(alpha) times among n, rounded down; the first rank are
  dots, which do not count. Coded words have six letters, one of them for 50 tokens of length.

  Attributes:
    alpha: exponent of the distribution, above 1.
  """

  alpha: Factor = 2.0

  name = "frequent-words"
  room = 50

  @property
  def least(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
    """The fewest words from which on the three come more often than the next, and each other."""
    third, next_one = self._shares(5)[3:]
    return math.ceil(1 / (third - next_one))  # all gaps before are larger

  def _shares(self, ranks: int) -> np.ndarray:
    return np.arange(1, ranks + 1) ** -self.alpha / _zeta(self.alpha)

  def _counts(self, words: int, ranks: int) -> list[int]:
    return np.floor(words * self._shares(ranks)).astype(int).tolist()

  def write(self, rng: np.random.Generator, units: int) -> Written:
    """Writes an example of about `units` words; see `LongTextTask.write`."""
    vocabulary = max(self.length // 50, 5)
    coded: dict[str, None] = {}
    while len(coded) < vocabulary - 1:
      coded["".join(_LETTERS[n] for n in rng.integers(0, 26, 6))] = None
    words = [_NOISE, *coded]
    counts = self._counts(units, vocabulary)
    listed = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
    listed = rng.permutation(listed).tolist()
    begin = "Count how often each coded word comes in this text; dots do not count.\n"
    prompt = (
      f"{begin}{' '.join(listed)}\nQuestion: which three coded words come most often?\n"
      "Answer: the three coded words that come most often are"
    )
    places, size = {}, len(begin)
    for word in listed:
      places.setdefault(word, max(size - 1, 0))
      size += len(word) + 1
    found = tuple(Found(word, places[word]) for word in words[1:4])
    return Written(prompt, " " + " ".join(words[1:4]), found)


@functools.cache
def _zeta(alpha: float) -> float:
  from scipy.special import zeta

  return float(zeta(alpha))


def _numbered(words: list[str]) -> str:
  return " ".join(f"{n}. {word}" for n, word in enumerate(words, 1))


def _first_places(words: list[str]) -> dict[str, int]:
  """Returns where each word comes first in the numbered list: the blank before it."""
  found: dict[str, int] = {}
  size = 0
  for n, word in enumerate(words, 1):
    found.setdefault(word, size + len(f"{n}."))
    size += len(f"{n}. {word} ")
  return found
