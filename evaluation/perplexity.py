"""Scores a model on text: bits per byte, and the loss at each position."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, cast

import jax
import numpy as np

from data.document_streams import DocumentStreams
from models.accounting import list_parameters
from models.language_model import LanguageModel
from parallel.sharding_plan import ShardingPlan, on_one_device
from training import carried_state
from training.losses import token_losses
from training.programs import KEPT


@dataclasses.dataclass(frozen=True)
class Score:
  """The loss on a text.

  Attributes:
    losses: [T] float64, summed loss in nats of the tokens at each position of their segment.
    counts: [T] int64, number of tokens at each position.
    bytes: bytes of UTF-8 text of the tokens, counted in the text, not in decoded tokens.
  """

  losses: np.ndarray
  counts: np.ndarray
  bytes: int

  def __add__(self, other: Score) -> Score:
    length = max(len(self.counts), len(other.counts))
    mine, others = (0, length - len(self.counts)), (0, length - len(other.counts))
    return Score(
      np.pad(self.losses, mine) + np.pad(other.losses, others),
      np.pad(self.counts, mine) + np.pad(other.counts, others),
      self.bytes + other.bytes,
    )

  @property
  def tokens(self) -> int:
    """Number of predicted tokens, including ends of documents."""
    return int(self.counts.sum())

  @property
  def loss(self) -> float:
    """Nats per token."""
    return float(self.losses.sum() / self.tokens)

  @property
  def bits_per_byte(self) -> float:
    """Bits per byte of text, independent of the tokenizer. Ends of documents count as 0 bytes."""
    return float(self.losses.sum() / math.log(2) / self.bytes)

  def by_position(self, edges: Iterable[int] | None = None) -> list[Bucket]:
    """Returns the loss between edges: by default at 0, 1, 2-3, 4-7 and so on."""
    if edges is None:
      edges = [0, *(2**n for n in range(len(self.losses).bit_length()))]
    edges = sorted({min(edge, len(self.losses)) for edge in edges} | {len(self.losses)})
    return [
      Bucket(start, stop, int(count), float(self.losses[start:stop].sum() / count))
      for start, stop in itertools.pairwise(edges)
      if (count := self.counts[start:stop].sum())
    ]


@dataclasses.dataclass(frozen=True)
class Bucket:
  """The mean loss in nats per token at positions start <= p < stop of a segment."""

  start: int
  stop: int
  tokens: int
  loss: float


@functools.lru_cache(maxsize=KEPT)
def _losses(model: LanguageModel, sharding_plan: ShardingPlan) -> jax.stages.Wrapped:
  """Returns (parameters, batch) -> loss of every token [B, T]; cached to compile a model once."""

  def losses(params, batch):
    return token_losses(model, params, batch)[0]

  # Replicated, because every process reads all of them.
  return jax.jit(sharding_plan.losses(losses), out_shardings=sharding_plan.everywhere)


@functools.lru_cache(maxsize=4)
def _streamed(model: Any, sharding_plan: ShardingPlan, rows: int) -> jax.stages.Wrapped:
  """Returns (parameters, batch, state) -> loss of every token [B, T], and the state behind it."""

  def losses(params, batch, state):
    (nll, _), state = carried_state.losses_from(state, model, params, batch)
    return nll, state

  specs = carried_state.specs(model, sharding_plan, rows)
  where = carried_state.shardings(model, sharding_plan, rows)
  return jax.jit(
    sharding_plan.losses(losses, carried=specs),
    out_shardings=(sharding_plan.everywhere, where),
    donate_argnums=2,
  )


@functools.lru_cache(maxsize=4)
def _initial_state(model: Any, sharding_plan: ShardingPlan, rows: int) -> jax.stages.Wrapped:
  """Returns () -> the state before the first token of a document, in every row; cached likewise."""
  return jax.jit(
    functools.partial(carried_state.initial_state, model, rows),
    out_shardings=carried_state.shardings(model, sharding_plan, rows),
  )


class Scorer:
  """Scores text with a model; compiled once per batch shape."""

  def __init__(self, model: LanguageModel, sharding_plan: ShardingPlan | None = None):
    """Sets the model and its sharding plan; None is one device."""
    self._sharding_plan = sharding_plan or on_one_device(list_parameters(model))
    # flax modules are hashable by their fields, which their type does not say.
    self._model = model
    self._losses = _losses(cast(Hashable, model), self._sharding_plan)

  def __call__(
    self,
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    report: Callable[[int, Score], None] | None = None,
  ) -> Score:
    """Scores the text of all batches.

    Args:
      params: the model's parameters.
      batches: batches of equal shape with row_bytes, from a single pass of `data.loader.batches`.
      report: called after every batch with the number of batches so far and their score.

    Raises:
      ValueError: the batches have no text.
    """
    result = _nothing()
    for done, score in enumerate(self.each(params, batches), start=1):
      result += score
      if report:
        report(done, result)
    return _with_text(result)

  def each(self, params: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Score]:
    """Yields the score of each batch, also of one without text; arguments are those of a call."""
    for batch in batches:
      yield self._one(params, batch)

  def stream(
    self,
    params: Any,
    batches: DocumentStreams,
    report: Callable[[int, Score], None] | None = None,
  ) -> Score:
    """Scores each document to its end, by a state that goes from batch to batch.

    Memory does not depend on the length of the documents.

    Args:
      params, batches: as of `each_streamed`.
      report: as of a call.

    Raises:
      training.carried_state.CarryError: the model's state grows with the tokens.
      ValueError: the batches have no text.
    """
    result = _nothing()
    for done, score in enumerate(self.each_streamed(params, batches), start=1):
      result += score
      if report:
        report(done, result)
    return _with_text(result)

  def each_streamed(
    self, params: Any, batches: DocumentStreams, count: int | None = None
  ) -> Iterator[Score]:
    """Yields the score of each batch of `stream`, also of one without text.

    Args:
      params: the model's parameters.
      batches: the documents; devices share their rows as those of any batch.
      count: batches to score, the first ones; None scores all.

    Raises:
      training.carried_state.CarryError: the model's state grows with the tokens.
    """
    rows = batches.batch_size
    run = _streamed(cast(Hashable, self._model), self._sharding_plan, rows)
    state = _initial_state(cast(Hashable, self._model), self._sharding_plan, rows)()
    for batch in itertools.islice(batches, count):
      placed = dict(batch)
      row_bytes, places = placed.pop("row_bytes"), placed.pop("places")
      losses, state = run(params, self._sharding_plan.place(placed, rows), state)
      yield _score(np.asarray(losses), batch["loss_weights"] > 0, places, row_bytes)

  def lower(self, params: Any, batch: Mapping[str, Any]) -> jax.stages.Lowered:
    """Lowers the program of a batch, also for devices that are not attached.

    Args:
      params: shapes, dtypes and shardings of the parameters.
      batch: the same of a batch, without row_bytes.
    """
    return self._losses.lower(params, dict(batch))

  def _one(self, params: Any, batch: Mapping[str, np.ndarray]) -> Score:
    # Summed on the host, in float64.
    placed = dict(batch)
    row_bytes = placed.pop("row_bytes")
    placed = self._sharding_plan.place(placed, len(batch["inputs"]))
    losses = np.asarray(self._losses(params, placed))
    return _score(losses, batch["loss_weights"] > 0, batch["positions"], row_bytes)


def _score(
  losses: np.ndarray, counted: np.ndarray, places: np.ndarray, row_bytes: np.ndarray
) -> Score:
  """The score of the counted tokens of a batch, [B, T], at their places in their documents."""
  places, length = places[counted], counted.shape[1]
  return Score(
    losses=np.bincount(places, losses[counted].astype(np.float64), minlength=length),
    counts=np.bincount(places, minlength=length),
    bytes=int(row_bytes.sum()),
  )


def total(scores: Iterable[Score]) -> Score:
  """Returns the score of all texts together.

  Raises:
    ValueError: they have no text.
  """
  return _with_text(functools.reduce(Score.__add__, scores, _nothing()))


def _nothing() -> Score:
  return Score(np.zeros(0), np.zeros(0, np.int64), 0)


def _with_text(score: Score) -> Score:
  """Returns the score, if it is of some text."""
  if not score.bytes:
    raise ValueError("there is no text to score: the held-out rows are empty or all padding.")
  return score
