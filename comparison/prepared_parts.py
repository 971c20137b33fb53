"""Prepares the parts of a comparison: what their results cost, depend on and are stored in."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from base.errors import UserError
from comparison import machine, run_identity
from comparison.comparison import TUNING, Comparison, OnTrainedModels
from comparison.page.figure import Figure
from comparison.progress import PlannedResult
from comparison.quality.tuning import NoSetting
from comparison.results import TEXT, NotMeasured, ResultCache
from comparison.runs import TrainedRuns
from experiment import experiment
from parallel import processes

# Options that parts got later, at the value that they had before: the results are the same.
_ADDED_LATER = (", examples=None",)


@dataclasses.dataclass(frozen=True)
class PreparedPart:
  """A part that is ready to be measured.

  Attributes:
    name: the part's name.
    costs: group and cost of every result, by key.
    cache: its stored results; None if nothing will be measured.
    figures: measures the part and returns its figures; takes a `Cached`.
    further: group and cost of results that may become necessary, such as a search's later rounds.
    left_out: says what the part leaves out here and why; '' if nothing.
  """

  name: str
  costs: Mapping[str, tuple[str, float]]
  cache: ResultCache | None
  figures: Callable[[Any], tuple[Figure, ...]]
  further: Mapping[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
  left_out: str = ""

  @property
  def measured(self) -> ResultCache:
    """The stored results of a part that is measured."""
    return cast(ResultCache, self.cache)

  def planned(self) -> list[PlannedResult]:
    """Lists all results, with the seconds of stored ones; of further ones only those stored."""
    seconds = self.measured.seconds({**self.costs, **self.further})
    further = {key: of for key, of in self.further.items() if key in seconds}
    return [
      PlannedResult(self.name, key, group, cost, seconds.get(key))
      for key, (group, cost) in {**self.costs, **further}.items()
    ]

  def kept(self) -> tuple[Figure, ...] | None:
    """Returns the figures if all results are stored, and can be drawn."""
    try:
      return self.figures(self.measured.kept)
    except (NotMeasured, NoSetting):  # The latter is told when it is measured.
      return None


def prepare(
  comparison: Comparison,
  runs: TrainedRuns,
  folder: Path | None,
  on_result: Callable[[str, str, float | None], None],
) -> list[PreparedPart]:
  """Prepares all parts.

  Args:
    comparison: the comparison.
    runs: its trained runs.
    folder: folder of stored results; None if nothing will be measured.
    on_result: called with part and key, and None before a result is measured or its seconds after.

  Raises:
    UserError: a part's options do not fit the models.
  """
  parts = []
  trained: set[str] = set()
  for name, wrapped in comparison.all_parts.items():
    try:
      if isinstance(wrapped, OnTrainedModels):
        given, depends, costs, further = _on_runs(wrapped, runs, trained)
      else:
        given, depends, costs = _on_models(wrapped, comparison, name)
        further = {}
    except ValueError as error:
      raise UserError(f"part {name}: {error}") from error
    cache = folder and _cache(folder, name, wrapped.part, depends, on_result)
    if cache and name == TUNING:
      runs.tune_by(cache.cached)
    left_out = getattr(wrapped.part, "left_out", str)()
    figures = functools.partial(wrapped.part, given)
    parts.append(PreparedPart(name, costs, cache, figures, further, left_out))
  return parts


def _on_runs(wrapped: Any, runs: TrainedRuns, trained: set[str]) -> tuple[Any, Any, Any, Any]:
  """Returns the input of a part on trained models, and its results: see `PreparedPart`.

  Those are the dependencies, the costs, and the costs of further results.
  """
  specs = wrapped.part.results(runs)
  costs = {}
  for key, spec in specs.items():
    run = runs.identity(spec)
    # Another part's result has trained it already.
    costs[key] = ("training", 0.0 if run in trained else runs.cost(spec).flops)
    trained.add(run)
  possible = getattr(wrapped.part, "possible", None)
  known = specs if possible is None else possible(runs)

  def depends(key: str) -> dict[str, Any]:
    text = runs.text(known[key])
    return {"run": runs.identity(known[key])} | ({TEXT: text} if text else {})

  further = {
    key: ("training", runs.cost(spec).flops) for key, spec in known.items() if key not in costs
  }
  return runs, depends, costs, further


def _on_models(wrapped: Any, comparison: Comparison, name: str) -> tuple[Any, Any, Any]:
  """Returns the input, dependencies and costs of the results of a part on built models."""
  configs = {model: comparison.model_config(model, wrapped.choices) for model in comparison.models}
  models = {model: experiment.build(config).model for model, config in configs.items()}
  identities = {
    model: run_identity.identity(config, comparison.folder) for model, config in configs.items()
  }
  costs = {key: (name, cost) for key, cost in wrapped.part.results(models).items()}
  # Models that are measured in turns depend on each other; those that are trained alone do not.
  model_of = getattr(wrapped.part, "model_of", None)

  def depends(key: str) -> dict[str, Any]:
    if model_of is None:
      return {"models": identities}
    return {"models": {model_of(key, models): identities[model_of(key, models)]}}

  return models, depends, costs


def _cache(
  folder: Path,
  name: str,
  part: Any,
  depends: Callable[[str], dict[str, Any]],
  on_result: Callable[[str, str, float | None], None],
) -> ResultCache:
  everywhere = {"part": _told(part), "on": machine.hardware(), "versions": machine.versions()}
  return ResultCache(
    folder,
    name,
    lambda key: depends(key) | everywhere,
    comparable=machine.comparable,
    writes=processes.is_first(),
    on_result=functools.partial(on_result, name),
  )


def _told(part: Any) -> str:
  """Formats a part's class and fields as text: the key of its stored results.

  Raises:
    TypeError: a field's text differs from process to process.
  """
  text = repr(part)
  if " at 0x" in text:
    raise TypeError(
      f"{text}: a part's fields must be dataclasses or plain values, all the way down."
    )
  return functools.reduce(lambda told, option: told.replace(option, ""), _ADDED_LATER, text)
