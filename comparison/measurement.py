"""Protocols of a comparison's measurements and of the runs that they use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from comparison.page.figure import Figure
from data.recall import RecallTask
from evaluation.harness_tasks import TaskScore
from evaluation.perplexity import Score
from evaluation.recall import Recalled
from models.language_model import LanguageModel

# `cached(key, measure)` returns one result: the stored result of this key, or else that of
# `measure()`, which is stored at once. Results are plain JSON values (dicts with string keys,
# lists, strings, finite numbers, None), and are returned as read back from JSON, so that a
# continued comparison is equal to an uninterrupted one.
Cached = Callable[[str, Callable[[], Any]], Any]


class Measurement(Protocol):
  """A measurement of untrained models: speed, memory, or a task that it trains them on.

  Implementations are frozen dataclasses with options as fields (lengths, batch sizes, repetitions,
  seeds, `baseline` for relative figures); gin binds them. Expensive work is done inside `cached`;
  a result should take seconds to a minute, because a killed comparison loses the current one. Both
  sides of a ratio are timed interleaved inside one result.

  Stored results are found by the key and by everything else that the value depends on: the part's
  class and fields, the configuration of every model, devices and versions. So a key, such as
  'Griffin, 2048 tokens', need only be unique within the part. A part whose models are measured one
  by one has a method `model_of(key, models)` too: then a result depends on its own model alone, and
  another model in the comparison repeats nothing.
  """

  def results(self, models: Mapping[str, LanguageModel]) -> Mapping[str, float]:
    """Returns the keys of a call's results, in order, with their relative costs.

    Only for the progress and its ETA: costs need not be exact. Called before measuring.

    Raises:
      ValueError: the options and the models do not fit; the message says what would.
    """
    ...

  def __call__(self, models: Mapping[str, LanguageModel], cached: Cached) -> tuple[Figure, ...]:
    """Measures, and returns the figures.

    Args:
      models: the models by display name, such as 'Griffin', in the order of the legend.
      cached: stores each result; see `Cached`.
    """
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
  """A training run of a comparison.

  Attributes:
    model, size: their names in the comparison.
    seed: seed of parameters and data order; equal seeds read equal rows for all models.
    length: tokens per row, with the same tokens per step; None is the configuration's.
    window: window of local attention in tokens; None is the configuration's.
    choices: more of the comparison's choices, gin files and macros, for this run alone; they
      override all others.
    trial: of a training in a search of settings (see `comparison.quality.tuning`) the share of the
      configuration's steps, warm-up included; None for all other runs.
  """

  model: str
  size: str
  seed: int
  length: int | None = None
  window: int | None = None
  choices: tuple[str, ...] = ()
  trial: float | None = None

  def __str__(self) -> str:
    options = [f"{name} {value}" for name in _OPTIONS if (value := getattr(self, name)) is not None]
    return ", ".join([self.model, self.size, *options, *self.choices, f"seed {self.seed}"])


_OPTIONS = ("length", "window", "trial")


class TrainedRun(Protocol):
  """A finished training run.

  Attributes:
    parameters: number of parameters.
    flops: FLOPs of the whole training, by `models.accounting`.
    tokens: tokens trained on.
    length: tokens per row.
    curve: held-out loss in nats per token by tokens trained on; the last is that of the finished
      model.
    recorded: the same as the run recorded it, on its own held-out text.
  """

  parameters: int
  flops: float
  tokens: int
  length: int
  curve: Mapping[int, float]
  recorded: Mapping[int, float]

  def score(self, *, length: int, tokens: int) -> Score:
    """Scores held-out text with the finished model.

    Args:
      length: tokens per row, which may be longer than in training.
      tokens: tokens to score, rounded up to whole batches.
    """
    ...

  def scores(self, *, length: int, tokens: int, batch_tokens: int) -> list[Score]:
    """Scores held-out text with the finished model, batch by batch.

    Models with equal arguments are scored on equal batches.

    Args:
      length: tokens per row.
      tokens: tokens to score, rounded up to whole batches.
      batch_tokens: tokens per batch, rounded down to whole rows, at least one per device.
    """
    ...

  def recall(self, task: RecallTask, questions: int) -> Recalled:
    """Scores the finished model on questions of a recall task with generated answers.

    Raises:
      CorpusError: the run's tokenizer cannot encode the task.
    """
    ...

  def downstream(
    self, task: str, data: Path, *, fewshot: int, length: int | None, limit: int | None
  ) -> TaskScore:
    """Scores the finished model on a task or group of lm-eval.

    Args:
      task: its name.
      data: the folder of a copy of its data set.
      fewshot: examples before each question.
      length: the most tokens that the model reads; None is the training length.
      limit: the most questions of the task, or of each task of the group; None is all.

    Raises:
      UserError: the data cannot be read, or an answer has more tokens than `length`.
    """
    ...


class Runs(Protocol):
  """The runs of a comparison, trained once on demand.

  Attributes:
    models: names of the models, in the order of the legend.
    sizes: names of the sizes, from small to large.
    seeds: seeds of every model and size.
  """

  models: tuple[str, ...]
  sizes: tuple[str, ...]
  seeds: tuple[int, ...]

  def train(self, spec: RunSpec) -> TrainedRun:
    """Trains a run, continues it, or opens a finished one.

    Raises:
      ValueError: the model or size is unknown, or `spec` does not fit the model.
    """
    ...

  def flops(self, spec: RunSpec) -> float:
    """Returns the FLOPs of a run's whole training, without training it."""
    ...

  def require_recall(self, spec: RunSpec, task: RecallTask, questions: int) -> None:
    """Checks that a run can be asked, without training it; see `TrainedRun.recall`.

    Raises:
      CorpusError: the run's tokenizer cannot encode the task, or the task has no text or no room.
    """
    ...


class TrainedMeasurement(Protocol):
  """A measurement of trained models; otherwise like `Measurement`.

  A part that needs what may be absent, such as a data set, has a method `left_out()` too. It
  returns a sentence for the page that says what the part leaves out and why; '' if nothing.
  """

  def results(self, runs: Runs) -> Mapping[str, RunSpec]:
    """Returns the keys of a call's results, in order, with the run of each."""
    ...

  def __call__(self, runs: Runs, cached: Cached) -> tuple[Figure, ...]:
    """Measures, and returns the figures; see `Measurement`."""
    ...


def require_model(name: str, models: Collection[str]) -> None:
  """Raises ValueError if a part's option names an unknown model."""
  if name not in models:
    raise ValueError(f"unknown model: {name!r}. Models of this comparison: {', '.join(models)}.")


def require_size(name: str, sizes: Collection[str], macro: str) -> None:
  """Raises ValueError if a part's option, which `macro` sets, names an unknown size."""
  if name not in sizes:
    raise ValueError(
      f"unknown size: {name!r}. Sizes of this comparison: {', '.join(sizes)}. Name one "
      f"of them with --gin.{macro}."
    )


def cached_by_run(
  results: Mapping[str, RunSpec], cached: Cached, measure: Callable[[RunSpec], Any]
) -> dict[RunSpec, Any]:
  """Returns every result of a part on trained models, by its run."""
  return {spec: cached(key, lambda spec=spec: measure(spec)) for key, spec in results.items()}
