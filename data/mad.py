"""Tasks of the Mechanistic Architecture Design suite (MAD), generated from a seed.

Poli et al. 2024 (arXiv 2403.17844, section 3 and appendix B; the definitions here follow the
authors' generators and task configurations): recall in context, plain, with noise and of fuzzy
keys, and memorization. Selective copying is `data.recall.SelectiveCopying`, compression is
`comparison.quality.compression`.

As everywhere here, a model reads the true tokens before an answer and the loss is on the answers
alone; the authors train recall on all tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from base.ranges import Count, CountFromZero, Seed, Share
from data.corpora import CorpusError
from data.recall import RecallExample, RecallTask, symbol_ids
from data.tokenizers import Tokenizer

_PUBLISHED = "arXiv 2403.17844"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallInContext(RecallTask):
  """MAD's in-context recall: name the values of all keys that came before, with noise between.

  The document is a sequence of pairs of a key and a value, drawn with replacement; a key has the
  same value in the whole document, and another one in the next. The last pair is of a key that came
  before. Keys are the first half of the symbols without noise, values the second half; the last
  symbols are noise. The published sizes are 16 symbols in 128 tokens; with noise 32 symbols, 16 of
  them noise, and a share of 0.2.

  Attributes:
    length: number of tokens, even.
    symbols: size of the vocabulary, with the noise.
    noise_symbols: how many of them are noise.
    noise: share of the pairs that are two noise symbols in place of a key and a value.
  """

  length: Count = 128
  symbols: Count = 16
  noise_symbols: CountFromZero = 0
  noise: Share = 0.0

  name = "recall-in-context"
  published = _PUBLISHED

  def __post_init__(self):
    super().__post_init__()
    if self.length % 2 or self.length < 4:
      raise CorpusError(
        f"recall in context of length={self.length}: give an even number from 4 on."
      )
    if self.symbols - self.noise_symbols < 2:
      raise CorpusError(
        f"recall in context of symbols={self.symbols} with noise_symbols={self.noise_symbols}: at "
        "least two must be left for keys and values."
      )
    if self.noise and (not self.noise_symbols or self.noise == 1):
      raise CorpusError(
        f"noise={self.noise} with noise_symbols={self.noise_symbols}: give a share below 1, and "
        "symbols for it."
      )

  def draw(self, tokenizer: Tokenizer, rng: np.random.Generator, count: int) -> list[RecallExample]:
    """Draws examples of `length` symbols."""
    ids, pairs = symbol_ids(tokenizer, self.symbols), self.length // 2
    plain = self.symbols - self.noise_symbols
    keys = rng.integers(0, plain // 2, (count, pairs))
    values = rng.integers(plain // 2, plain, (count, plain // 2))
    is_noise = rng.random((count, pairs)) < self.noise
    # At least one pair comes before the last, which is none of noise.
    is_noise[np.arange(count), rng.integers(0, pairs - 1, count)] = False
    is_noise[:, -1] = False
    noise = rng.integers(plain, max(self.symbols, plain + 1), (count, pairs, 2))
    last = rng.random(count)
    examples = []
    for row in range(count):
      own = keys[row]
      known = np.unique(own[:-1][~is_noise[row, :-1]])
      own[-1] = known[int(last[row] * len(known))]
      symbols = np.stack([own, values[row, own]], axis=1)
      symbols = np.where(is_noise[row, :, None], noise[row], symbols).ravel()
      answers, sources, seen = [], [], {}
      for pair in np.flatnonzero(~is_noise[row]).tolist():
        key = int(own[pair])
        if key in seen:
          answers.append(2 * pair + 1)
          sources.append(2 * seen[key] + 1)
        seen[key] = pair
      examples.append(_example(tokenizer, ids, symbols, answers, sources))
    return examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuzzyRecall(RecallTask):
  """MAD's fuzzy recall: keys and values of several symbols, whose number varies.

  A key is one to `longest_key` different symbols, a value one to `longest_value`; all else is as in
  `RecallInContext`. Held-out examples have keys of the largest size alone. Examples have as many
  pairs as fit; the authors fill them up with a padding symbol on the left, which is left out here.
  The published sizes are 16 symbols (one of them that padding) in 128 tokens, up to three symbols.

  Attributes:
    length: largest number of tokens.
    symbols: size of the vocabulary: half of it keys, half values.
    shortest_key, longest_key: symbols of a key in training.
    longest_value: most symbols of a value.
  """

  length: Count = 128
  symbols: Count = 15
  shortest_key: Count = 1
  longest_key: Count = 3
  longest_value: Count = 3

  name = "fuzzy-recall"
  published = _PUBLISHED

  def __post_init__(self):
    super().__post_init__()
    if not self.shortest_key <= self.longest_key <= self.symbols // 2:
      raise CorpusError(
        f"fuzzy recall of keys of shortest_key={self.shortest_key} to "
        f"longest_key={self.longest_key} symbols: half of symbols={self.symbols} are for keys, all "
        "different."
      )
    if self.longest_value > self.symbols - self.symbols // 2:
      raise CorpusError(
        f"fuzzy recall of longest_value={self.longest_value}: half of symbols={self.symbols} are "
        "for values, all different."
      )
    if self.length < 3 * (self.longest_key + self.longest_value):
      raise CorpusError(
        f"fuzzy recall of length={self.length}: there must be room for three pairs of "
        f"{self.longest_key + self.longest_value} symbols."
      )

  def drawn(self, tokenizer: Tokenizer, split: str) -> Iterator[RecallExample]:
    """Yields the examples of a split; see `RecallTask.drawn`."""
    if split == "train" or self.shortest_key == self.longest_key:
      yield from super().drawn(tokenizer, split)
    else:
      whole = dataclasses.replace(self, shortest_key=self.longest_key)
      yield from whole.drawn(tokenizer, split)

  def draw(self, tokenizer: Tokenizer, rng: np.random.Generator, count: int) -> list[RecallExample]:
    """Draws examples of at most `length` symbols."""
    ids = symbol_ids(tokenizer, self.symbols)
    return [_example(tokenizer, ids, *self._one(rng)) for _ in range(count)]

  def _one(self, rng: np.random.Generator) -> tuple[list[int], list[int], list[int]]:
    """Draws the symbols of an example, with its answers and their sources."""
    half = self.symbols // 2

    def key() -> tuple[int, ...]:
      size = rng.integers(self.shortest_key, self.longest_key + 1)
      return tuple(rng.permutation(half)[:size].tolist())

    def value() -> tuple[int, ...]:
      size = rng.integers(1, self.longest_value + 1)
      return tuple((half + rng.permutation(self.symbols - half)[:size]).tolist())

    asked = key()
    known = {asked: value()}
    room, most = self.length - len(asked) - len(known[asked]), self.longest_key + self.longest_value
    # Where it comes first: two pairs of any size fit after that.
    first = int(rng.integers(0, room - 2 * most + 1))
    symbols: list[int] = []
    answers: list[int] = []
    sources: list[int] = []
    seen: dict[tuple[int, ...], int] = {}

    def add(own: tuple[int, ...]) -> None:
      start = len(symbols) + len(own)
      symbols.extend((*own, *known[own]))
      if own in seen:
        answers.extend(range(start, len(symbols)))
        sources.extend(range(seen[own], seen[own] + len(known[own])))
      seen[own] = start

    while len(symbols) <= room - most:
      own = asked if len(symbols) >= first and asked not in seen else key()
      if own not in known:
        known[own] = value()
      add(own)
    add(asked)
    return symbols, answers, sources


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memorization(RecallTask):
  """MAD's memorization: name the value of a key, the same in all examples.

  Nothing in the document tells it: the keys of an example are all different. (The authors draw them
  with replacement, and mark a value's place by a symbol in its stead.) The published sizes are 256
  symbols (one of them that mark) in 32 tokens.

  Attributes:
    length: number of tokens, even.
    symbols: size of the vocabulary: half of it keys, half values.
    map_seed: seed of the map from keys to values.
  """

  length: Count = 32
  symbols: Count = 255
  map_seed: Seed = 12345

  name = "memorization"
  published = _PUBLISHED

  def __post_init__(self):
    super().__post_init__()
    if self.length % 2 or self.length // 2 > self.symbols // 2:
      raise CorpusError(
        f"memorization of length={self.length} with symbols={self.symbols}: the length must be "
        f"even, and its pairs at most half of the symbols, {self.symbols // 2}."
      )

  def draw(self, tokenizer: Tokenizer, rng: np.random.Generator, count: int) -> list[RecallExample]:
    """Draws examples of `length` symbols."""
    ids, half, pairs = symbol_ids(tokenizer, self.symbols), self.symbols // 2, self.length // 2
    values = half + np.random.default_rng(self.map_seed).permutation(self.symbols - half)
    keys = np.argsort(rng.random((count, half)), axis=1)[:, :pairs]
    symbols = np.stack([keys, values[keys]], axis=2).reshape(count, self.length)
    answers = 2 * np.arange(pairs) + 1
    return [_example(tokenizer, ids, row, answers, answers - 1) for row in symbols]


def _example(
  tokenizer: Tokenizer,
  ids: np.ndarray,
  symbols: np.ndarray | list[int],
  answers: np.ndarray | list[int],
  sources: np.ndarray | list[int],
) -> RecallExample:
  """Makes an example of symbols and an EOS."""
  tokens = np.append(ids[np.asarray(symbols)], tokenizer.eos_id).astype(np.int32)
  return RecallExample(tokens, np.asarray(answers), np.asarray(sources))
