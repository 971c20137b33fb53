"""Scores trained models on the paper's downstream tasks by lm-eval, beside the paper's Table 1."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from base import buckets
from base.file_paths import FilePath
from base.ranges import Count, CountFromZero
from comparison import measurement, shares
from comparison.measurement import Cached, Runs, RunSpec, TrainedRun
from comparison.page.figure import PUBLISHED, Axis, Figure, Question, Series
from comparison.quality import published_tasks
from comparison.quality.published_tasks import TASKS
from comparison.statistics import Claims, Interval, paired_difference, series

# Values of a result: accuracy, number of questions, and the run's parameters, tokens and length.
Found = Mapping[tuple[RunSpec, str], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Downstream:
  """Scores every trained run on the tasks whose data is here.

  Attributes:
    data: a folder with a copy of each task's data set, in folders named as the tasks are in lm-eval
      (the keys of `published_tasks.TASKS`); None leaves the part out.
    baseline: the model to compare the others with.
    fewshot: examples before each question by task; 0 for tasks that it does not name.
    length: the most tokens that a model reads; None is its training length.
    limit: the most questions of a task, and of each of MMLU's 57; None is all.
  """

  # Where it lies changes no result: the keys have digests of its contents.
  data: FilePath | None = dataclasses.field(repr=False)
  baseline: str
  fewshot: Mapping[str, CountFromZero] = dataclasses.field(default_factory=lambda: {"mmlu": 5})
  length: Count | None = None
  limit: Count | None = None

  def __post_init__(self):
    if self.data is not None and buckets.is_address(self.data):
      raise ValueError(f"data={self.data} is in a bucket: copy it to this machine first.")
    for name in self.fewshot:
      if name not in TASKS:
        raise ValueError(f"fewshot names {name!r}, which is none of {', '.join(TASKS)}.")

  def left_out(self) -> str:
    """Says which tasks cannot be scored here and why; '' if all can."""
    if importlib.util.find_spec("lm_eval") is None:
      return "Left out: lm-eval is not installed (make install EXTRAS=harness)."
    if self.data is None:
      return (
        f"Left out: there is no copy of the data of {', '.join(TASKS.values())} "
        "(--gin.DOWNSTREAM_DATA=FOLDER names one)."
      )
    lacking = [name for name in TASKS if name not in self._tasks()]
    if not lacking:
      return ""
    names, folders = ", ".join(TASKS[name] for name in lacking), " or ".join(lacking)
    return f"Left out: {names}, because {self.data} has no folder {folders} with files."

  def _tasks(self) -> list[str]:
    """Returns the tasks that can be scored here."""
    if self.data is None or importlib.util.find_spec("lm_eval") is None:
      return []
    return [name for name in TASKS if _files(self._folder(name))]

  def _folder(self, name: str) -> Path:
    return Path(self.data or "") / name

  def results(self, runs: Runs) -> dict[str, RunSpec]:
    """Returns a result for each run and task."""
    measurement.require_model(self.baseline, runs.models)
    tasks = self._tasks()
    return {self._key(spec, name): spec for spec in self._specs(runs) for name in tasks}

  def _specs(self, runs: Runs) -> list[RunSpec]:
    return [
      RunSpec(model=model, size=size, seed=seed)
      for size in runs.sizes
      for model in runs.models
      for seed in runs.seeds
    ]

  def _key(self, spec: RunSpec, name: str) -> str:
    return f"{spec}, {name}, data {_digest(self._folder(name))}"

  def __call__(self, runs: Runs, cached: Cached) -> tuple[Figure, ...]:
    """Trains and scores the models; returns the figures of the mean and of each task."""
    tasks = self._tasks()
    if not tasks:
      return ()
    train = functools.lru_cache(maxsize=1)(runs.train)
    found = {
      (spec, name): cached(
        self._key(spec, name), lambda spec=spec, name=name: self._measure(train(spec), name)
      )
      for spec in self._specs(runs)
      for name in tasks
    }
    drawn = _Drawn(self, runs, found, tuple(tasks))
    each = [drawn.figure(name, [name]) for name in tasks]
    return (drawn.figure("mean", tasks), *each) if len(tasks) > 1 else tuple(each)

  def _measure(self, run: TrainedRun, name: str) -> dict[str, Any]:
    scored = run.downstream(
      name,
      self._folder(name),
      fewshot=self.fewshot.get(name, 0),
      length=self.length,
      limit=self.limit,
    )
    return {
      "accuracy": scored.accuracy,
      "questions": scored.questions,
      "parameters": run.parameters,
      "tokens": run.tokens,
      "length": self.length or run.length,
    }


@dataclasses.dataclass(frozen=True)
class _Drawn:
  """Results to draw."""

  part: Downstream
  runs: Runs
  found: Found
  tasks: tuple[str, ...]

  def seeds(self, model: str, size: str) -> list[RunSpec]:
    """The runs of a model and size."""
    return [RunSpec(model=model, size=size, seed=seed) for seed in self.runs.seeds]

  def accuracies(self, model: str, size: str, tasks: Sequence[str]) -> list[float]:
    """Returns the mean accuracy over tasks, one per seed."""
    return [
      float(np.mean([self.found[spec, name]["accuracy"] for name in tasks]))
      for spec in self.seeds(model, size)
    ]

  def questions(self, name: str) -> int:
    """The number of a task's questions."""
    return next(of["questions"] for (_, own), of in self.found.items() if own == name)

  def figure(self, name: str, tasks: Sequence[str]) -> Figure:
    """Draws the accuracy on a task, or the mean of several, against the parameters."""
    label = TASKS.get(name, f"mean of {len(tasks)} tasks")
    sizes, models = self.runs.sizes, self.runs.models
    values = {m: [self.accuracies(m, size, tasks) for size in sizes] for m in models}
    # The error of a mean is that of so many questions: each task has equal weight.
    asked = round(len(tasks) ** 2 / sum(1 / self.questions(one) for one in tasks))
    last = {model: of[-1] for model, of in values.items()}
    claims = Claims()
    told = ", ".join(f"{model} {np.mean(of):.1%}" for model, of in last.items())
    differences = "; ".join(
      claims.says_difference(
        model,
        self.part.baseline,
        paired_difference(of, last[self.part.baseline]),
        lower="is below",
        higher="is above",
      )
      for model, of in last.items()
      if model != self.part.baseline
    )
    finding = f"At {sizes[-1]}: {told}" + (f"; {differences}." if differences else ".")
    measured = [
      series(
        model,
        [self.parameters(model, size) for size in sizes],
        [shares.of_seeds(accuracy, asked) for accuracy in of],
      )
      for model, of in values.items()
    ]
    return Figure(
      name=f"downstream_{name}",
      title=f"Downstream: {label}",
      finding=finding,
      x=Axis(label="parameters", log=True),
      y=Axis(label="share of right answers"),
      series=(*measured, *_published(tasks)),
      spread=shares.spread_text(len(self.runs.seeds)),
      conditions=self.conditions(tasks),
      source="section 3.2, table 1",
      asks=(Question(text=f"downstream: {label}", better="higher"),),
      differences=claims.noted,
    )

  def parameters(self, model: str, size: str) -> int:
    """The parameters of the first seed's model."""
    return self.found[self.seeds(model, size)[0], self.tasks[0]]["parameters"]

  def conditions(self, tasks: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """What was asked, and what the published points are."""
    shots = {name: self.part.fewshot.get(name, 0) for name in tasks}
    trained = {
      size: self.found[self.seeds(self.runs.models[0], size)[0], tasks[0]]
      for size in self.runs.sizes
    }
    return (
      (
        "sizes",
        ", ".join(f"{size} ({of['tokens']:,} tokens)" for size, of in trained.items()),
      ),
      ("context", f"{max(of['length'] for of in trained.values()):,} tokens"),
      ("questions", ", ".join(f"{TASKS[name]} {self.questions(name):,}" for name in tasks)),
      ("examples before each", ", ".join(f"{TASKS[name]} {n}" for name, n in shots.items())),
      (
        "score",
        "the most likely answer per character; of WinoGrande the text after either option (partial"
        " scoring), of MMLU the letter",
      ),
      (
        "published:",
        f"{published_tasks.SOURCE}: 300 billion tokens of another text; its number of examples "
        "before a question is not known",
      ),
    )


def _published(tasks: Sequence[str]) -> list[Series]:
  """Makes the series of the paper's models."""
  found = []
  for model in published_tasks.TABLE:
    points = published_tasks.accuracies(model, tasks)
    found.append(
      series(
        f"{model}, paper",
        list(points),
        [Interval(accuracy, accuracy, accuracy, 1) for accuracy in points.values()],
        PUBLISHED,
      )
    )
  return found


def _files(folder: Path) -> list[Path]:
  """Returns the files of a copy, without those that a download adds, such as .cache."""
  return sorted(
    path
    for path in folder.rglob("*")
    if path.is_file() and not any(part[0] == "." for part in path.relative_to(folder).parts)
  )


@functools.cache
def _digest(folder: Path) -> str:
  """Computes a digest of the names and contents of a copy's files."""
  digest = hashlib.sha256()
  for path in _files(folder):
    with path.open("rb") as file:
      own = hashlib.file_digest(file, "sha256").hexdigest()
    digest.update(f"{path.relative_to(folder).as_posix()} {own}\n".encode())
  return digest.hexdigest()[:12]
