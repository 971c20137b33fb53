"""Log-likelihoods of continuations, in batches of few shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from inference.decode_sharding import DecodeSharding, OneDevice
from models.language_model import LanguageModel
from parallel.sharded_vocabulary import whole

# Logits with more bytes than this are computed in pieces.
_MAX_LOGIT_BYTES = 2**28
_SHORTEST = 32


class Likelihood(NamedTuple):
  """The likelihood of a continuation.

  Attributes:
    log_probability: natural logarithm, summed over its tokens.
    greedy: whether each of its tokens is the most likely one.
  """

  log_probability: float
  greedy: bool


class Request(NamedTuple):
  """A request: the likelihood of `continuation` after `context`, both nonempty token ids."""

  context: Sequence[int]
  continuation: Sequence[int]


@dataclasses.dataclass(frozen=True)
class LikelihoodScorer:
  """Scores continuations with a model.

  Attributes:
    model: the model.
    max_length: the most tokens that the model reads; longer requests lose their first tokens.
    tokens_at_once: rows times length of a batch, unless one row per device has more.
    where: the devices.
  """

  model: LanguageModel
  max_length: int
  tokens_at_once: int = 2**14
  where: DecodeSharding = dataclasses.field(default_factory=OneDevice)

  def __post_init__(self):
    for name in ("max_length", "tokens_at_once"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")

  def __call__(
    self,
    params: Any,
    requests: Sequence[Request],
    report: Callable[[int, int], None] | None = None,
  ) -> list[Likelihood]:
    """Scores requests, in their order.

    Args:
      params: the model's parameters.
      requests: the requests. If context and continuation together have more than max_length + 1
        tokens (the model does not read the last), the first tokens of the context are dropped.
      report: called after every batch with the number of requests done and the total.

    Raises:
      ValueError: a context or continuation is empty, or a continuation is longer than max_length.
    """
    for request in requests:
      self._check(request)
    params = self.where.place(params)
    results: list[Likelihood] = [Likelihood(0.0, True)] * len(requests)
    done = 0
    for indices, length, places, rows in self._batches(requests):
      found = self._batch(params, [requests[i] for i in indices], length, places, rows)
      for index, likelihood in zip(indices, found, strict=True):
        results[index] = likelihood
      done += len(indices)
      if report:
        report(done, len(requests))
    return results

  def _check(self, request: Request) -> None:
    if not len(request.context) or not len(request.continuation):
      raise ValueError("a context and a continuation need at least one token each (BOS is one).")
    if len(request.continuation) > self.max_length:
      raise ValueError(
        f"a continuation of {len(request.continuation)} tokens does not fit into"
        f" max_length={self.max_length}. Raise it, or use a rolling likelihood."
      )

  def _batch(
    self, params: Any, requests: Sequence[Request], length: int, places: int, rows: int
  ) -> list[Likelihood]:
    """Scores a batch [rows, length], with at most `places` tokens per continuation."""
    tokens = np.zeros((rows, length + 1), np.int32)
    segment_ids = np.zeros((rows, length), np.int32)
    scored = np.zeros((rows, places), bool)
    columns = np.zeros((rows, places), np.int32)
    for row, (context, continuation) in enumerate(requests):
      ids = [*context, *continuation][-(self.max_length + 1) :]
      first = len(ids) - 1 - len(continuation)
      tokens[row, : len(ids)] = ids
      segment_ids[row, : len(ids) - 1] = 1
      scored[row, : len(continuation)] = True
      columns[row, : len(continuation)] = np.arange(first, len(ids) - 1)
    targets = np.take_along_axis(tokens, columns + 1, axis=1)
    pieces, logit_bytes = 1, 4 * rows // self.where.shards * places * self.model.padded_vocab_size
    while logit_bytes // pieces > _MAX_LOGIT_BYTES and pieces < places:
      pieces *= 2
    batch = tokens[:, :-1], segment_ids, columns, targets
    logs, likeliest = _score(self.where, self.model, params, batch, pieces=pieces)
    # Summed on the host, in float64.
    sums = np.sum(np.asarray(logs, np.float64), axis=1, where=scored)
    greedy = np.all(np.asarray(likeliest), axis=1, where=scored)
    answers = zip(sums.tolist(), greedy.tolist(), strict=True)
    return [Likelihood(*answer) for answer in answers][: len(requests)]

  def _batches(self, requests: Sequence[Request]) -> Iterator[tuple[list[int], int, int, int]]:
    """Yields (indices, length, places, rows): requests of similar sizes, and their padded shape."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for index, (context, continuation) in enumerate(requests):
      length = min(len(context) + len(continuation) - 1, self.max_length)
      shape = bucket(length), min(bucket(len(continuation), 4), bucket(length))
      shapes.setdefault(shape, []).append(index)
    for (length, places), indices in sorted(shapes.items(), reverse=True):
      shards = self.where.shards
      rows = max(1, self.tokens_at_once // (length * shards)) * shards
      for start in range(0, len(indices), rows):
        chosen = indices[start : start + rows]
        yield chosen, length, places, min(rows, bucket(len(chosen), 2, shards))


def bucket(size: int, factor: int = 2, least: int = _SHORTEST) -> int:
  """Rounds up to one of least, least * factor, least * factor^2, ..."""
  result = least
  while result < size:
    result *= factor
  return result


@functools.partial(jax.jit, static_argnames=("where", "model", "pieces"))
def _score(
  where: DecodeSharding,
  model: LanguageModel,
  params: Any,
  batch: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
  *,
  pieces: int,
) -> tuple[jax.Array, jax.Array]:
  """Returns the targets' log-probabilities [B, P], and whether each is greedy [B, P].

  Logits are computed in pieces of P, one after the other.

  Args:
    where: the devices.
    model: the model.
    params: its parameters.
    batch: inputs [B, T], segment ids [B, T], and columns and targets of the continuations [B, P].
    pieces: number of pieces, a divisor of P.
  """

  def score(params, batch):
    inputs, segment_ids, columns, targets = batch
    found = model.apply({"params": params}, inputs, segment_ids=segment_ids, method="hidden")
    hidden, _ = cast(tuple[jax.Array, None], found)
    hidden = jnp.take_along_axis(hidden, columns[..., None], axis=1)

    def piece(arguments):
      hidden, targets = arguments
      logits = cast(jax.Array, model.apply({"params": params}, hidden, method="logits"))
      logits = whole(logits, model.vocab_size)
      chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
      return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == targets

    rows, places = targets.shape
    cut = [
      jnp.moveaxis(x.reshape(rows, pieces, places // pieces, *x.shape[2:]), 1, 0)
      for x in (hidden, targets)
    ]
    scores, likeliest = jax.lax.map(piece, tuple(cut))
    return (
      jnp.moveaxis(scores, 0, 1).reshape(rows, places),
      jnp.moveaxis(likeliest, 0, 1).reshape(rows, places),
    )

  return where.read(score, params, batch)
