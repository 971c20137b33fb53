"""Scores recall tasks: the share of right answers, and where a model fails."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from data import drawn_examples
from data.loader import batch_of_rows
from data.recall import RecallExample, RecallTask
from data.tokenizers import Tokenizer
from inference.decode_sharding import DecodeSharding, OneDevice
from inference.decoder import Decoder, rows_of
from inference.sampling import Sampler
from models.language_model import LanguageModel
from parallel.sharded_vocabulary import whole

# Rows are padded to a multiple of this, so that many lengths share few programs.
_MULTIPLE = 64
# Tokens per batch, unless one row has more.
_TOKENS_AT_ONCE = 2**15
# The same for contexts of tasks with references, which are filled but for a sentence; and the least
# number of tokens to generate for them.
_LONG_MULTIPLE, _MOST_GENERATED = 512, 128


@dataclasses.dataclass(frozen=True)
class Share:
  """The answers of a kind: of a range of distances, depths, positions or lengths.

  Attributes:
    start, stop: the range start <= value < stop.
    correct: share of right answers.
    count: number of answers.
  """

  start: float
  stop: float
  correct: float
  count: int


@dataclasses.dataclass(frozen=True)
class Recalled:
  """The tokens of all answers, or the texts that the answers of a task must contain.

  Attributes:
    correct: [N] bool, whether the model's token is right, or its answer contains the text.
    example: [N] int64, number of its example.
    position: [N] int64, its position in the answer, from 0.
    distance: [N] int64, tokens between it and its source, the token that it repeats; for a text,
      between the beginning of the answer and the source.
    depth: [N] float64, position of its source: 0 at the start of the context, 1 at its end.
    length: [N] int64, size of the context in the task's unit.
  """

  correct: np.ndarray
  example: np.ndarray
  position: np.ndarray
  distance: np.ndarray
  depth: np.ndarray
  length: np.ndarray

  @classmethod
  def of(
    cls, examples: Sequence[RecallExample], correct: Sequence[np.ndarray], length: int
  ) -> Recalled:
    """Joins the results of examples, [A] bool each."""
    counts = [len(right) for right in correct]
    contexts = np.array([example.answers[0] for example in examples])
    places, sources = map(np.concatenate, zip(*map(_places, examples), strict=True))
    return cls(
      correct=np.concatenate(correct).astype(bool),
      example=np.repeat(np.arange(len(examples)), counts),
      position=np.concatenate([np.arange(count) for count in counts]),
      distance=places - sources,
      depth=sources / np.repeat(contexts, counts),
      length=np.full(sum(counts), length),
    )

  def __add__(self, other: Recalled) -> Recalled:
    """Joins two results, with different examples."""
    shifted = dataclasses.replace(other, example=other.example + self.example.max() + 1)
    fields = [field.name for field in dataclasses.fields(self)]
    return Recalled(
      **{name: np.concatenate([getattr(self, name), getattr(shifted, name)]) for name in fields}
    )

  @property
  def accuracy(self) -> float:
    """Share of right answer tokens."""
    return float(self.correct.mean())

  @property
  def exact(self) -> float:
    """Share of examples with only right answer tokens."""
    wrong = np.bincount(self.example, ~self.correct) > 0
    return float(1 - wrong.mean())

  def by(self, kind: str, edges: Sequence[float] | None = None) -> list[Share]:
    """Returns the accuracy by 'position', 'distance', 'depth' or 'length', without empty kinds.

    Args:
      kind: the attribute to group by.
      edges: ascending edges of the groups; by default powers of two for distances, tenths for
        depths, and otherwise a group per value.
    """
    values = getattr(self, kind)
    if edges is None:
      edges = self._edges(kind, values)
    shares = []
    for start, stop in itertools.pairwise(edges):
      chosen = self.correct[(values >= start) & (values < stop)]
      if len(chosen):
        shares.append(Share(start, stop, float(chosen.mean()), len(chosen)))
    return shares

  @staticmethod
  def _edges(kind: str, values: np.ndarray) -> Sequence[float]:
    if kind == "depth":
      return [tenth / 10 for tenth in range(11)]
    if kind == "distance":
      return [2**n for n in range(int(values.max()).bit_length() + 1)]
    different = np.unique(values).tolist()
    return [*different, different[-1] + 1]


def _places(example: RecallExample) -> tuple[np.ndarray, np.ndarray]:
  """Returns the places of an example's answers, and of their sources: of tokens, or of texts."""
  if not example.references:
    return example.answers, example.sources
  sources = np.array([reference.source for reference in example.references])
  return np.full(len(sources), example.answers[0]), sources


class RecallScorer:
  """Scores a model on recall tasks; compiled once per batch shape."""

  def __init__(
    self, model: LanguageModel, tokenizer: Tokenizer, where: DecodeSharding | None = None
  ):
    """Sets the model, its tokenizer, and the devices; None is one device."""
    self._where = where or OneDevice()

    def likeliest(params, rows):
      batch, columns = rows
      found = model.apply(
        {"params": params},
        batch["inputs"],
        segment_ids=batch["segment_ids"],
        positions=batch["positions"],
        method="hidden",
      )
      # Only logits of the answers.
      hidden, _ = cast(tuple[jax.Array, None], found)
      asked = jnp.take_along_axis(hidden, columns[..., None], axis=1)
      logits = cast(jax.Array, model.apply({"params": params}, asked, method="logits"))
      return jnp.argmax(whole(logits, model.vocab_size), axis=-1)

    self._likeliest = jax.jit(functools.partial(self._where.read, likeliest))
    self._decoder = Decoder(model, Sampler(temperature=0), where=where)
    self._tokenizer = tokenizer

  def __call__(
    self,
    params: Any,
    task: RecallTask,
    examples: int | None = None,
    batch_size: int | None = None,
    *,
    split: str = "heldout",
  ) -> Recalled:
    """Scores held-out examples of the task, by generation or teacher forcing as the task defines.

    Args:
      params: the model's parameters.
      task: the task at the length to test.
      examples: number of examples; by default the task's number of held-out examples.
      batch_size: examples per batch; by default about 32,768 tokens.
      split: 'heldout', or 'validation' for choices that must not see the held-out examples.

    Raises:
      CorpusError: the tokenizer cannot encode the task.
    """
    if examples is not None:
      task = dataclasses.replace(task, heldout_examples=examples)
    asked = drawn_examples.of(task, self._tokenizer, split)
    longest = max(len(example.tokens) for example in asked)
    # A larger batch would be padding.
    rows = max(1, min(batch_size or _TOKENS_AT_ONCE // longest, len(asked)))
    # Devices need the same number of rows.
    rows = -(-rows // self._where.shards) * self._where.shards
    if not task.generates:
      params = self._where.place(params)  # once for all batches
    answer = self.generated if task.generates else self.teacher_forced
    correct = [
      given
      for start in range(0, len(asked), rows)
      for given in answer(params, asked[start : start + rows], rows)
    ]
    return Recalled.of(asked, correct, task.length)

  def teacher_forced(
    self, params: Any, examples: Sequence[RecallExample], rows: int
  ) -> Iterator[np.ndarray]:
    """Yields [A] bool per example: whether the most likely token after the true ones is right.

    Args:
      params: the model's parameters.
      examples: at most `rows` examples.
      rows: rows of the batch; the rest is padding.
    """
    length = -(-max(len(example.tokens) for example in examples) // _MULTIPLE) * _MULTIPLE
    tokens = np.zeros((rows, length), np.int32)
    segment_ids = np.zeros((rows, length), np.int32)
    columns = np.zeros((rows, max(len(example.answers) for example in examples)), np.int32)
    for row, example in enumerate(examples):
      tokens[row, : len(example.tokens)] = example.tokens
      segment_ids[row, : len(example.tokens)] = 1
      columns[row, : len(example.answers)] = example.answers
    batch = batch_of_rows(tokens, segment_ids, bos_id=self._tokenizer.bos_id)
    given = np.asarray(self._likeliest(params, (batch, columns)))
    for row, example in enumerate(examples):
      yield given[row, : len(example.answers)] == example.tokens[example.answers]

  def generated(
    self, params: Any, examples: Sequence[RecallExample], rows: int
  ) -> Iterator[np.ndarray]:
    """Yields [A] bool per example: whether the greedily generated token is right.

    For an example with references it is [R] bool: whether the generated text contains the
    reference, in capitals or not (RULER's string match).

    Args:
      params: the model's parameters.
      examples: at most `rows` examples that end with their answer.
      rows: rows of the batch; the rest repeats the last example.
    """
    padded = [*examples, *[examples[-1]] * (rows - len(examples))]
    prompts = [[self._tokenizer.bos_id, *e.tokens[: e.answers[0]].tolist()] for e in padded]
    most = max(example.room or len(example.answers) for example in examples)
    pad_to = 0
    if examples[0].references:
      # So that tasks of one length share a program.
      most = -(-max(most, _MOST_GENERATED) // _MULTIPLE) * _MULTIPLE
      longest = max(len(prompt) + e.room for prompt, e in zip(prompts, padded, strict=True))
      pad_to = -(-longest // _LONG_MULTIPLE) * _LONG_MULTIPLE
    given = rows_of(self._decoder.generate(params, prompts, max_tokens=most, pad_to=pad_to), rows)
    for example, ids in zip(examples, given, strict=False):
      if example.references:
        known = [token for token in ids[: example.room] if token < self._tokenizer.size]
        text = self._tokenizer.decode(known).lower()
        yield np.array([reference.text.lower() in text for reference in example.references])
        continue
      expected = example.tokens[example.answers]
      found = np.full(len(expected), -1)
      found[: len(ids)] = ids[: len(expected)]
      yield found == expected
