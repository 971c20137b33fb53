"""Recall tasks: look-ups in the context with known answers, generated from a seed.

Each task is a corpus, so that `data.dataset.TextDataset` reads it like text; the loss is only on
the answers. Symbols are numbered as by the tasks' authors: ids of a `Symbols` tokenizer, or, to
mix with text, the bytes from '0' on of a `Bytes` tokenizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from base.ranges import Count, NotNegative, Seed
from data import tokenizers
from data.corpora import CorpusError
from data.tokenizers import Tokenizer

# Validation examples are for choices, such as of a learning rate.
SPLITS = ("train", "heldout", "validation")
# Revision of the generators; examples and cache names depend on it.
_REVISION = 1


class Reference(NamedTuple):
  """A text that a generated answer must contain.

  Attributes:
    text: the text.
    source: index of the token where it stands in the document.
  """

  text: str
  source: int


class RecallExample(NamedTuple):
  """A document with its answers.

  Attributes:
    tokens: [n] int32 ids, ending in EOS.
    answers: [A] indices of the answers' tokens, ascending.
    sources: [A] indices of the tokens that the answers repeat.
    references: the texts that make a generated answer right, in place of its tokens; empty for
      most tasks.
    room: tokens to generate for the references.
  """

  tokens: np.ndarray
  answers: np.ndarray
  sources: np.ndarray
  references: tuple[Reference, ...] = ()
  room: int = 0

  @property
  def loss_mask(self) -> np.ndarray:
    """[n] bool, True on the answers."""
    mask = np.zeros(len(self.tokens), bool)
    mask[self.answers] = True
    return mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallTask:
  """Base class of recall tasks.

  Attributes:
    length: size of the context, in the task's `unit`.
    examples, heldout_examples: number of examples in the splits 'train' and 'heldout'; 'validation'
      has as many as 'heldout'.
    seed: seed of all examples; the splits have different generators.
  """

  length: Count
  examples: Count = 65_536
  heldout_examples: Count = 1024
  seed: Seed = 0

  # A short name for directories, different for each task.
  name: ClassVar[str]
  # Corpora without this class attribute have the loss on every token.
  has_loss_mask = True
  # The unit of `length`.
  unit = "tokens"
  # Where the task is published, for figures: by default the paper.
  published = "section 6.2, appendix H"
  # Whether the published score is that of generated text; else of the most likely token after the
  # true previous tokens.
  generates = False
  # Examples per random generator, which draws them together.
  block = 64

  def __post_init__(self):
    for name in ("examples", "heldout_examples"):
      if getattr(self, name) < 1:
        raise CorpusError(f"{name}={getattr(self, name)} must be at least 1.")

  @property
  def sizes(self) -> str:
    """The sizes of the contexts, in words."""
    return f"{self.length:,} {self.unit}"

  def draw(self, tokenizer: Tokenizer, rng: np.random.Generator, count: int) -> list[RecallExample]:
    """Draws examples.

    Raises:
      CorpusError: the tokenizer cannot encode them.
    """
    raise NotImplementedError

  def describe(self) -> dict[str, Any]:
    """Returns the name and all fields."""
    return {"corpus": self.name, "revision": _REVISION} | dataclasses.asdict(self)

  def with_length(self, length: int) -> RecallTask:
    """Returns the same task with another context size."""
    return dataclasses.replace(self, length=length)

  def drawn(self, tokenizer: Tokenizer, split: str) -> Iterator[RecallExample]:
    """Yields the examples of a split, always the same.

    Raises:
      CorpusError: the split is unknown, or the tokenizer cannot encode the examples.
    """
    if split not in SPLITS:
      raise CorpusError(
        f"split={split!r} does not exist in {self.name}; there are {', '.join(SPLITS)}."
      )
    left = self.examples if split == "train" else self.heldout_examples
    for block in range(-(-left // self.block)):
      rng = self.generator(split, block)
      yield from self.draw(tokenizer, rng, self.block)[: left - block * self.block]

  def generator(self, split: str, block: int) -> np.random.Generator:
    """Returns the random generator of a block of examples."""
    return np.random.default_rng([self.seed, SPLITS.index(split), block])

  def require(self, tokenizer: Tokenizer) -> None:
    """Checks that the task can be asked, before a model is trained for it.

    Raises:
      CorpusError: see `draw`.
    """
    self.draw(tokenizer, self.generator("heldout", 0), 1)


def symbol_ids(tokenizer: Tokenizer, count: int) -> np.ndarray:
  """Returns [count] int32, the ids of symbols 0 to count - 1.

  Raises:
    CorpusError: the tokenizer has no symbols, or too few.
  """
  if isinstance(tokenizer, tokenizers.Symbols) and count <= tokenizer.count:
    return tokenizers.Symbols.SPECIAL + np.arange(count, dtype=np.int32)
  first = ord("0")
  if isinstance(tokenizer, tokenizers.Bytes) and first + count <= 256:
    return tokenizers.Bytes().encode("\0")[0] + first + np.arange(count, dtype=np.int32)
  raise CorpusError(
    f"the task has {count} symbols, the tokenizer is {tokenizer!r}. Give tokenizers.Symbols"
    f" with count={count} or more, or tokenizers.Bytes for up to {256 - first} symbols."
  )


def _as_examples(
  tokenizer: Tokenizer, count: int, symbols: np.ndarray, answers: np.ndarray, sources: np.ndarray
) -> list[RecallExample]:
  """Makes examples of symbols [N, n] of `count` kinds and an EOS; answers, sources: [N, A]."""
  tokens = np.full((len(symbols), symbols.shape[1] + 1), tokenizer.eos_id, np.int32)
  tokens[:, :-1] = symbol_ids(tokenizer, count)[symbols]
  answers, sources = np.broadcast_arrays(answers, sources)
  return [RecallExample(*values) for values in zip(tokens, answers, sources, strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectiveCopying(RecallTask):
  """Selective copying: repeat the data tokens at random places among noise, in order.

  Jing et al. 2019, as Gu and Dao 2023 (Mamba, section 4.1.1 and appendix E.1) and appendix H of the
  Griffin paper use it: vocabulary 16, 16 data tokens; the context has 4096 tokens in Mamba and 1024
  in Griffin. Symbol 0 is noise, the last one asks for the answer, the data are uniform over the
  rest. Here the model reads its previous answers, as a language model does; in the original it
  reads the asking symbol again.

  Attributes:
    length: tokens of the context, including the data.
    data_tokens: how many of them are data.
    symbols: size of the vocabulary, including the noise and asking symbols.
  """

  length: Count = 1024
  data_tokens: Count = 16
  symbols: Count = 16

  name = "selective-copying"

  def __post_init__(self):
    super().__post_init__()
    if not 1 <= self.data_tokens <= self.length or self.symbols < 3:
      raise CorpusError(
        f"selective copying of data_tokens={self.data_tokens} among length={self.length} tokens "
        "with"
        f" symbols={self.symbols}: give 1 to {self.length} data tokens and at least 3 symbols."
      )

  def draw(self, tokenizer: Tokenizer, rng: np.random.Generator, count: int) -> list[RecallExample]:
    """Draws examples of length + 1 + data_tokens symbols."""
    chances = rng.random((count, self.length))
    places = np.sort(np.argpartition(chances, self.data_tokens - 1)[:, : self.data_tokens])
    data = rng.integers(1, self.symbols - 1, (count, self.data_tokens))
    symbols = np.zeros((count, self.length + 1 + self.data_tokens), np.int64)
    np.put_along_axis(symbols, places, data, axis=1)
    symbols[:, self.length] = self.symbols - 1
    symbols[:, self.length + 1 :] = data
    answers = self.length + 1 + np.arange(self.data_tokens)
    return _as_examples(tokenizer, self.symbols, symbols, answers, places)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InductionHeads(RecallTask):
  """Induction heads: name the token after the first occurrence of the context's last token.

  Olsson et al. 2022, as Gu and Dao 2023 (Mamba, section 4.1.2 and appendix E.1) and appendix H of
  the Griffin paper use it: vocabulary 16, trained at 256 tokens, tested up to many times that. The
  last symbol is the special one; the others are uniform.

  Attributes:
    length: tokens of the context, with the special token at its end.
    symbols: size of the vocabulary, including the special token.
  """

  length: Count = 256
  symbols: Count = 16

  name = "induction-heads"

  def __post_init__(self):
    super().__post_init__()
    if self.length < 3 or self.symbols < 3:
      raise CorpusError(
        f"induction heads with length={self.length} and symbols={self.symbols}: give at least 3 of "
        "each."
      )

  def draw(self, tokenizer: Tokenizer, rng: np.random.Generator, count: int) -> list[RecallExample]:
    """Draws examples of length + 1 symbols."""
    special = self.symbols - 1
    symbols = rng.integers(0, special, (count, self.length + 1))
    first = rng.integers(0, self.length - 2, (count, 1))
    np.put_along_axis(symbols, first, special, axis=1)
    symbols[:, self.length - 1] = special
    symbols[:, self.length :] = np.take_along_axis(symbols, first + 1, axis=1)
    return _as_examples(tokenizer, self.symbols, symbols, np.array([self.length]), first + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiQueryRecall(RecallTask):
  """Multi-query associative recall (MQAR): name the values of keys that come again.

  Arora et al. 2023 (Zoology, arXiv 2312.04927, section 4 and appendix; their repository's
  generator): the document begins with `pairs` different keys and their different values. Each key
  comes again once, at twice a gap that is drawn without replacement with probability proportional
  to (gap + 1)^(power - 1), so that most come soon; its value is the answer. All other places have
  random symbols. Keys are symbols 1 to symbols/2 - 1, values those from symbols/2 on. The published
  sizes are 8,192 symbols and 64 to 512 tokens with 4 to 64 pairs. After a key comes its true value,
  as in a language model's text; the original has a random symbol there.

  Attributes:
    length: number of tokens, even.
    pairs: number of pairs, at most a quarter of the length.
    symbols: size of the vocabulary.
    power: exponent of the gaps' distribution; 1 is uniform.
  """

  length: Count = 64
  pairs: Count = 4
  symbols: Count = 8192
  power: NotNegative = 0.01

  name = "multi-query-recall"
  published = "arXiv 2312.04927, figure 2"

  def __post_init__(self):
    super().__post_init__()
    if self.length % 2 or not 1 <= self.pairs <= self.length // 4:
      raise CorpusError(
        f"multi-query recall of pairs={self.pairs} in length={self.length} tokens: the length must "
        "be"
        f" even, and the pairs 1 to {self.length // 4}, a quarter of it."
      )
    if self.symbols // 2 <= self.pairs:
      raise CorpusError(
        f"multi-query recall of pairs={self.pairs} needs more than {2 * self.pairs + 1} symbols, "
        "not"
        f" symbols={self.symbols}."
      )

  def draw(self, tokenizer: Tokenizer, rng: np.random.Generator, count: int) -> list[RecallExample]:
    """Draws examples of `length` symbols."""
    half, context = self.symbols // 2, 2 * self.pairs
    keys = 1 + _draw_distinct(rng, np.zeros(half - 1), count, self.pairs)
    values = half + _draw_distinct(rng, np.zeros(self.symbols - half), count, self.pairs)
    places = np.arange((self.length - context) // 2)
    gaps = _draw_distinct(rng, (self.power - 1) * np.log(places + 1), count, self.pairs)
    symbols = rng.integers(0, self.symbols, (count, self.length))
    symbols[:, 0:context:2], symbols[:, 1:context:2] = keys, values
    np.put_along_axis(symbols, context + 2 * gaps, keys, axis=1)
    np.put_along_axis(symbols, context + 2 * gaps + 1, values, axis=1)
    # As they are asked for.
    order = np.argsort(gaps, axis=1)
    answers = context + 2 * np.take_along_axis(gaps, order, axis=1) + 1
    return _as_examples(tokenizer, self.symbols, symbols, answers, 2 * order + 1)


def _draw_distinct(
  rng: np.random.Generator, log_weights: np.ndarray, count: int, size: int
) -> np.ndarray:
  """Draws [count, size] indices without replacement by weight, in order.

  The largest log-weights plus Gumbel noise are such draws (Yellott 1977).
  """
  scores = log_weights + rng.gumbel(size=(count, len(log_weights)))
  return np.argsort(-scores, axis=1)[:, :size]
