"""Measures recall of models that are trained on the task, each at its own learning rate."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping

import numpy as np

from comparison.measurement import Cached
from comparison.page.figure import Axis, Figure, Series
from comparison.quality.rate_search import RateSearch, Searched
from comparison.quality.recall_curves import RecallCurves
from comparison.quality.recall_figures import Questions
from comparison.quality.recall_learning import Learner, Schedule
from evaluation.recall import RecallScorer
from models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedRecallCurves(RecallCurves):
  """`RecallCurves` with a search of each model's learning rate before its seeds are trained.

  Attributes:
    search: the rates to try. The schedule's rate has no effect.
    label: what sets the task apart from others of its class on a page, such as '8 pairs'.
  """

  search: RateSearch
  label: str = ""

  @property
  def _questions(self) -> Questions:
    rates = ", ".join(f"{rate:g}" for rate in self.search.rates)
    return dataclasses.replace(
      super()._questions,
      conditions=(
        *self._conditions("each model at its own peak learning rate"),
        (
          "search",
          f"rates {rates} for each model, whole trainings of seed {self.search.seed}, chosen by "
          f"{self.questions:,} validation examples, which are in no other figure",
        ),
      ),
    )

  def results(self, models: Mapping[str, LanguageModel]) -> dict[str, float]:
    """Returns a result for each model and rate, then one for each model and seed."""
    of_seeds = super().results(models)
    return {key: 1.0 for name in models for key in self.search.keys(name)} | of_seeds

  def __call__(self, models: Mapping[str, LanguageModel], cached: Cached) -> tuple[Figure, ...]:
    """Searches rates, trains and scores the models; returns the figures, that of rates last."""
    self.results(models)
    searched = {name: self._searched(name, model, cached) for name, model in models.items()}
    figures = (*super().__call__(models, cached), self._rates(searched))
    if not self.label:
      return figures
    ending = re.sub(r"[^A-Za-z0-9]+", "_", self.label)
    return tuple(
      dataclasses.replace(
        one,
        name=f"{one.name}_{ending}",
        title=f"{one.title}, {self.label}",
        asks=tuple(
          dataclasses.replace(question, text=f"{question.text}, {self.label}")
          for question in one.asks
        ),
      )
      for one in figures
    )

  def _schedule(self, name: str, model: LanguageModel, cached: Cached) -> Schedule:
    return self._at(self._searched(name, model, cached).best)

  def _at(self, rate: float) -> Schedule:
    return dataclasses.replace(self.schedule, learning_rate=rate)

  def _searched(self, name: str, model: LanguageModel, cached: Cached) -> Searched:
    return self.search(name, cached, functools.partial(self._validate, model))

  def _validate(self, model: LanguageModel, rate: float) -> dict[str, float]:
    """Measures accuracies on validation examples of a training at a rate, as JSON values."""
    learner = Learner(model, self.task, self.vocabulary, self._at(rate))
    scorer = RecallScorer(model, self.vocabulary)
    rights = [
      scorer(params, self.task, self.questions, split="validation").accuracy
      for _, params in learner(self.search.seed)
    ]
    return {"right": rights[-1], "mean": float(np.mean(rights))}

  def _rates(self, searched: Mapping[str, Searched]) -> Figure:
    """Plots right answers on validation examples against the learning rate."""
    told = "; ".join(found.says(name) for name, found in searched.items())
    figure = self._questions.figure(
      "rates",
      title=f"{self._questions.title}: right answers against the learning rate",
      finding=f"Best peak learning rates, by right answers on validation examples: {told}.",
      x=Axis(label="peak learning rate", log=True),
      y=Axis(label="share of right answer tokens, validation"),
      series=tuple(
        Series(name=name, x=tuple(found.right), y=tuple(found.right.values()))
        for name, found in searched.items()
      ),
    )
    return dataclasses.replace(figure, spread="")  # one training each
