"""What a comparison is made of: parts that measure, and what they are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from comparison.page.figure import Figure
from data.recall import RecallTask
from evaluation.perplexity import Score
from evaluation.recall import Recalled
from models.language_model import LanguageModel

# `cached(key, measure)` returns one result: what an earlier launch kept under this key, or else
# what `measure()` returns, which is kept at once. Results are plain JSON values (dicts with string
# keys, lists, strings, finite numbers, None), and are returned as JSON gives them back, so that a
# continued comparison sees what an uninterrupted one sees.
Cached = Callable[[str, Callable[[], Any]], Any]


class Measurement(Protocol):
  """A measurement on models that are built, not trained: speed, memory, tasks that it trains on
  itself.

  Implementations are frozen dataclasses whose fields are the options (lengths, batch sizes,
  repetitions, seeds, `baseline` where one model is the measure of the others); gin binds them. What
  is costly happens inside `cached`; a result is what may be lost when the comparison is killed:
  seconds to a minute. Sides of a ratio are timed interleaved inside one result.

  What was kept is looked up by the key and by everything else the value depends on: the part's
  class and fields, the configuration of every model, devices and versions. A key therefore only
  tells the results of one part apart, such as 'Griffin, 2048 tokens'.
  """

  def results(self, models: Mapping[str, LanguageModel]) -> Mapping[str, float]:
    """The keys of the results that a call asks for, in order, with their relative costs.

    For the progress and its ETA alone; costs need not be exact. Called before anything is measured.

    Raises:
      ValueError: the options and the models do not fit; one line that says which and what would.
    """
    ...

  def __call__(self, models: Mapping[str, LanguageModel], cached: Cached) -> tuple[Figure, ...]:
    """Measures.

    Args:
      models: by the name that figures show, such as 'Griffin', in the order of the legend.
      cached: keeps each result, see `Cached`.
    """
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
  """One training run of a comparison.

  Attributes:
    model, size: their names in the comparison.
    seed: of parameters and data order; equal seeds see equal rows whatever the model.
    length: tokens per row, with the rows per step changed so that a step has as many tokens; None
      is the configuration's.
    window: tokens that local attention sees; None is the configuration's.
  """

  model: str
  size: str
  seed: int
  length: int | None = None
  window: int | None = None

  def __str__(self) -> str:
    options = [f"{name} {value}" for name in _OPTIONS if (value := getattr(self, name)) is not None]
    return ", ".join([self.model, self.size, *options, f"seed {self.seed}"])


_OPTIONS = ("length", "window")


class TrainedRun(Protocol):
  """A finished training run.

  Attributes:
    parameters: their number.
    flops: operations of the whole training, by the formula of `models.accounting`.
    tokens: tokens trained on.
    length: tokens per row.
    curve: held-out loss in nats per token by tokens trained on; the last is that of the finished
      model.
  """

  parameters: int
  flops: float
  tokens: int
  length: int
  curve: Mapping[int, float]

  def score(self, *, length: int, tokens: int) -> Score:
    """Scores held-out text with the finished model.

    Args:
      length: tokens per row, which may be more than the training had.
      tokens: how much to read, rounded up to whole batches.
    """
    ...

  def recall(self, task: RecallTask, questions: int) -> Recalled:
    """Asks the finished model so many questions of a recall task with generated answers.

    Raises:
      CorpusError: the run's vocabulary cannot spell the task.
    """
    ...


class Runs(Protocol):
  """The runs of a comparison: trained when they are asked for, once.

  Attributes:
    models: names of the models, in the order of the legend.
    sizes: names of the sizes, from small to large.
    seeds: for every model and size.
  """

  models: tuple[str, ...]
  sizes: tuple[str, ...]
  seeds: tuple[int, ...]

  def train(self, spec: RunSpec) -> TrainedRun:
    """Trains a model, goes on with its training, or opens what is finished.

    Raises:
      ValueError: there is no such model or size, or what `spec` changes has no meaning for it.
    """
    ...


class TrainedMeasurement(Protocol):
  """A measurement on trained models; otherwise as `Measurement`."""

  def results(self, runs: Runs) -> Mapping[str, RunSpec]:
    """The keys of the results that a call asks for, in order, with the run that each needs."""
    ...

  def __call__(self, runs: Runs, cached: Cached) -> tuple[Figure, ...]:
    """As in `Measurement`."""
    ...


def require_model(name: str, models: Collection[str]) -> None:
  """Raises ValueError if a part's option names a model that is not there."""
  if name not in models:
    raise ValueError(
      f"there is no model {name!r} in this comparison; there is {', '.join(models)}."
    )


def require_size(name: str, sizes: Collection[str]) -> None:
  """Raises ValueError if a part's option names a size that is not there."""
  if name not in sizes:
    raise ValueError(
      f"there is no size {name!r}; there is {', '.join(sizes)}. Let the part have one of "
      "--gin.SIZES: --gin.CONTEXT_SIZE, --gin.WINDOW_SIZE_SIZE and --gin.RECALL_SIZE name it."
    )


def cached_by_run(
  results: Mapping[str, RunSpec], cached: Cached, measure: Callable[[RunSpec], Any]
) -> dict[RunSpec, Any]:
  """Every result of a part on trained models, by its run."""
  return {spec: cached(key, lambda spec=spec: measure(spec)) for key, spec in results.items()}
