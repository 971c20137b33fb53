"""Measures models on a suite of recall tasks, each model at its own learning rate of each task."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from base.ranges import Count, Seed
from comparison.measurement import Cached
from comparison.page.figure import Axis, Figure, Question, Series
from comparison.quality.compression import Compression, CompressionLearner
from comparison.quality.rate_search import RateSearch, Searched
from comparison.quality.recall_figures import share
from comparison.quality.recall_learning import Learner, Schedule
from comparison.statistics import Claims, paired_difference, series, spread_text
from data.recall import RecallTask
from data.tokenizers import Tokenizer
from evaluation.recall import RecallScorer
from models.language_model import LanguageModel

_MEAN = "mean"

# Trains at a seed: yields steps done and the share of right answers on a split.
Trials = Callable[[int, str], Iterator[tuple[int, float]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallSuite:
  """Trains every model on every task, and shows the share of right answers and its mean.

  Attributes:
    label: the suite's name on the page, such as 'MAD'.
    tasks: maps the name of each task to it: a `data.recall.RecallTask`, or a `Compression`.
    vocabulary: the models' tokenizer, with symbols for every task.
    schedule: the training schedule; its rate has no effect.
    search: the rates to try, for each model and task.
    baseline: the model to compare the others with.
    seeds: seeds of parameters and examples.
    questions: number of examples that are asked of a trained model.
  """

  label: str
  tasks: Mapping[str, RecallTask | Compression]
  vocabulary: Tokenizer
  search: RateSearch
  baseline: str
  schedule: Schedule = dataclasses.field(default_factory=Schedule)
  seeds: Sequence[Seed] = (0, 1, 2)
  questions: Count = 1280

  def __post_init__(self):
    if not self.tasks or not self.seeds:
      raise ValueError(f"tasks={dict(self.tasks)} and seeds={self.seeds}: give at least one.")
    if _MEAN in self.tasks:
      raise ValueError(f"a task named {_MEAN!r} cannot be told from the mean. Give it another.")

  def results(self, models: Mapping[str, LanguageModel]) -> dict[str, float]:
    """Returns a result for each model, task and rate, then one for each seed."""
    for name, model in models.items():
      if model.vocab_size < self.vocabulary.size:
        raise ValueError(
          f"{name} has {model.vocab_size} tokens, {self.label} needs {self.vocabulary.size}: set "
          f"VOCAB_SIZE = {self.vocabulary.size} in its choices."
        )
    if self.baseline not in models:
      raise ValueError(f"baseline={self.baseline!r} is none of {', '.join(models)}.")
    found = {}
    for name in models:
      for task in self.tasks:
        own = f"{name}, {task}"
        found |= dict.fromkeys(self.search.keys(own), 1.0)
        found |= {_key(own, seed): 1.0 for seed in self.seeds}
    return found

  def model_of(self, key: str, models: Mapping[str, LanguageModel]) -> str:
    """The model that a result is of: another model in the comparison does not change it."""
    return max((name for name in models if key.startswith(f"{name}, ")), key=len)

  def __call__(self, models: Mapping[str, LanguageModel], cached: Cached) -> tuple[Figure, ...]:
    """Searches rates, trains and asks the models; returns the scores, then the rates by task."""
    self.results(models)
    searched: dict[str, dict[str, Searched]] = {task: {} for task in self.tasks}
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for name, model in models.items():
      for task in self.tasks:
        own = f"{name}, {task}"
        validate = functools.partial(self._validate, model, task)
        searched[task][name] = found = self.search(own, cached, validate)
        trials = functools.cache(functools.partial(self._trials, model, task, found.best))
        scores[name][task] = [
          cached(_key(own, seed), lambda seed=seed, trials=trials: _last(trials()(seed, "heldout")))
          for seed in self.seeds
        ]
    for of_model in scores.values():
      of_model[_MEAN] = np.mean(list(of_model.values()), axis=0).tolist()
    return (self._scores(scores, searched), *(self._rates(t, s) for t, s in searched.items()))

  def _trials(self, model: LanguageModel, task: str, rate: float) -> Trials:
    """Returns the trainings of a model on a task at a rate, compiled once for all seeds."""
    given, schedule = self.tasks[task], dataclasses.replace(self.schedule, learning_rate=rate)
    if isinstance(given, Compression):
      compressing = CompressionLearner(model, given, schedule)
      return lambda seed, split: (
        (step, compressing.accuracy(params, self.questions, split))
        for step, params in compressing(seed)
      )
    learner = Learner(model, given, self.vocabulary, schedule)
    scorer = RecallScorer(model, self.vocabulary)
    return lambda seed, split: (
      (step, scorer(params, given, self.questions, split=split).accuracy)
      for step, params in learner(seed)
    )

  def _validate(self, model: LanguageModel, task: str, rate: float) -> dict[str, float]:
    """Measures right answers on validation examples of a training at a rate, as JSON values."""
    rights = [right for _, right in self._trials(model, task, rate)(self.search.seed, "validation")]
    return {"right": rights[-1], "mean": float(np.mean(rights))}

  def _scores(
    self,
    scores: Mapping[str, Mapping[str, list[float]]],
    searched: Mapping[str, Mapping[str, Searched]],
  ) -> Figure:
    places = [*self.tasks, _MEAN]
    means = {name: of_model[_MEAN] for name, of_model in scores.items()}
    told = ", ".join(f"{name} {np.mean(values):.0%}" for name, values in means.items())
    claims = Claims()
    differences = "; ".join(
      claims.says_difference(
        name,
        self.baseline,
        paired_difference(values, means[self.baseline]),
        lower="is below",
        higher="is above",
        digits=2,
      )
      for name, values in means.items()
      if name != self.baseline
    )
    edges = [
      f"{name} on {task}"
      for task, of_task in searched.items()
      for name, found in of_task.items()
      if found.is_at_edge
    ]
    finding = f"Mean of {len(self.tasks)} tasks: {told}; {differences}."
    if edges:
      finding += f" The best rate is at an edge of the grid for {', '.join(edges)}."
    return Figure(
      name=f"{_word(self.label)}_scores",
      title=f"{self.label}: right answers by task",
      finding=finding,
      x=Axis(label="task"),
      y=Axis(label="share of right answer tokens"),
      series=tuple(
        series(name, places, [share(of_model[place]) for place in places])
        for name, of_model in scores.items()
      ),
      spread=spread_text(len(self.seeds)),
      conditions=(
        *((task, _described(given)) for task, given in self.tasks.items()),
        ("training", f"{self.schedule.describe()}, each model at its own peak learning rate"),
        ("questions", f"{self.questions:,} per task and seed"),
        ("seeds", ", ".join(map(str, self.seeds))),
      ),
      source="arXiv 2403.17844",
      differences=claims.noted,
      asks=(
        Question(
          text=f"{self.label}: right answers, mean of {len(self.tasks)} tasks",
          better="higher",
          at=_MEAN,
        ),
      ),
    )

  def _rates(self, task: str, searched: Mapping[str, Searched]) -> Figure:
    told = "; ".join(found.says(name) for name, found in searched.items())
    return Figure(
      name=f"{_word(self.label)}_rates_{_word(task)}",
      title=f"{self.label}, {task}: right answers against the learning rate",
      finding=f"Best peak learning rates, by right answers on validation examples: {told}.",
      x=Axis(label="peak learning rate", log=True),
      y=Axis(label="share of right answer tokens, validation"),
      series=tuple(
        Series(name=name, x=tuple(found.right), y=tuple(found.right.values()))
        for name, found in searched.items()
      ),
      conditions=(
        ("task", _described(self.tasks[task])),
        ("search", f"whole trainings of seed {self.search.seed}, on {self.questions:,} examples"),
      ),
      source="arXiv 2403.17844",
    )


def _described(task: RecallTask | Compression) -> str:
  hidden = ("examples", "heldout_examples", "seed")
  fields = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
  told = (f"{name} {value}" for name, value in fields.items() if name not in hidden)
  return ", ".join([task.name, *told])


def _last(curve: Iterator[tuple[int, float]]) -> float:
  *_, (_, right) = curve
  return right


def _key(own: str, seed: int) -> str:
  return f"{own}, seed {seed}"


def _word(text: str) -> str:
  return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()
