"""What a comparison is made of: parts that measure, and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from evaluation.figure import Figure
from evaluation.perplexity import Score
from models.language_model import LanguageModel

# `remember(key, measure)` returns the value of one cell: what an earlier launch kept under this key,
# or else what `measure()` returns, which is kept at once. Values are plain JSON values (dicts with
# string keys, lists, strings, finite numbers, None), and are returned as JSON gives them back, so that
# a continued comparison sees what an uninterrupted one sees.
Remember = Callable[[str, Callable[[], Any]], Any]


class Part(Protocol):
  """A measurement on models that are built, not trained: speed, memory, tasks that it trains on itself.

  Implementations are frozen dataclasses whose fields are the options (lengths, batch sizes,
  repetitions, seeds, `baseline` where one model is the measure of the others); gin binds them. What is
  costly happens inside `remember`; a cell is what may be lost when the comparison is killed: seconds to
  a minute. Sides of a ratio are timed interleaved inside one cell.

  What was kept is looked up by the key and by everything else the value depends on: the part's class
  and fields, the configuration of every model, devices and versions. A key therefore only tells the
  cells of one part apart, such as 'Griffin, 2048 tokens'.
  """

  def cells(self, models: Mapping[str, LanguageModel]) -> Mapping[str, float]:
    """The keys that a call will remember, in order, with what each costs in relation to the others.

    For the progress and its ETA alone; costs need not be exact.
    """

  def __call__(self, models: Mapping[str, LanguageModel], remember: Remember) -> tuple[Figure, ...]:
    """Measures.

    Args:
      models: by the name that figures show, such as 'Griffin', in the order of the legend.
      remember: keeps each cell's value, see `Remember`.

    Raises:
      ValueError: the options and the models do not fit; one line that says which and what would.
    """


class Trained(Protocol):
  """A finished training run.

  Attributes:
    parameters: their number.
    flops: operations of the whole training, from the formula of `models.accounting`.
    tokens: tokens trained on.
    tokens_per_step: tokens per optimizer step.
    curve: held-out loss in nats per token by optimizer step, the last step's last.
    bits_per_byte: of the held-out text at the end.
  """

  parameters: int
  flops: float
  tokens: int
  tokens_per_step: int
  curve: Mapping[int, float]
  bits_per_byte: float

  def score(self, *, length: int, tokens: int) -> Score:
    """Scores held-out text with the finished model.

    Args:
      length: tokens per row, which may be more than the training had.
      tokens: how much to read, rounded up to whole batches.
    """


class Runs(Protocol):
  """The runs of a comparison: trained when they are asked for, once.

  Attributes:
    models: names of the models, in the order of the legend.
    sizes: names of the sizes, from small to large.
    seeds: seeds of parameters and data order; equal seeds see equal rows whatever the model.
  """

  models: tuple[str, ...]
  sizes: tuple[str, ...]
  seeds: tuple[int, ...]

  def train(
    self,
    model: str,
    size: str,
    seed: int,
    *,
    length: int | None = None,
    window: int | None = None,
  ) -> Trained:
    """Trains a model, goes on with its training, or opens what is finished.

    Args:
      model, size, seed: which.
      length: tokens per row, with the rows per step changed so that a step has as many tokens; None is
        the configuration's.
      window: tokens that local attention sees; None is the configuration's.

    Raises:
      ValueError: there is no such model or size; or no such length or window.
    """

  def cost(
    self, model: str, size: str, *, length: int | None = None, window: int | None = None
  ) -> float:
    """Operations of such a training: the same for every seed."""


class TrainedPart(Protocol):
  """A measurement on trained models; otherwise as `Part`."""

  def cells(self, runs: Runs) -> Mapping[str, float]:
    """As in `Part`; costs are in floating-point operations, so that runs of several parts compare."""

  def __call__(self, runs: Runs, remember: Remember) -> tuple[Figure, ...]:
    """As in `Part`."""
