"""Trains the runs of a comparison, each in its own run directory."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from base import paths
from base.errors import UserError
from comparison import results, run_identity
from comparison.comparison import Comparison
from comparison.measurement import Cached, RunSpec
from comparison.progress import ComparisonProgress
from comparison.quality.tuning import written
from config.config import Config
from data import haystacks, loader
from data.recall import RecallTask
from evaluation import harness_tasks, perplexity
from evaluation.harness_tasks import TaskScore
from evaluation.perplexity import Score, Scorer
from evaluation.recall import Recalled, RecallScorer
from experiment import experiment as experiment_lib
from experiment import running, trained
from experiment.experiment import Experiment
from experiment.run_directory import RunDirectory
from experiment.trust import NOBODY, Trust
from inference import decode_sharding
from inference.decode_sharding import OverMesh
from models.accounting import Account, account
from parallel.sharding_plan import ShardingPlan
from training import checkpoint, checkpoint_reader, json_files, loop
from training.metrics import read_metrics


class Stopped(Exception):
  """A signal stopped a training run, which has saved a checkpoint.

  Attributes:
    by: the signal.
  """

  def __init__(self, where: str, by: signal.Signals):
    """Makes the error for a run and step, and a signal."""
    super().__init__(where)
    self.by = by


@dataclasses.dataclass(frozen=True)
class Cost:
  """Cost of a run, the same for every seed.

  Attributes:
    parameters: number of parameters.
    tokens: tokens trained on.
    flops: FLOPs of the whole training.
    tokens_per_step, length: tokens per step, and per row.
  """

  parameters: int
  tokens: int
  flops: float
  tokens_per_step: int
  length: int


@dataclasses.dataclass(frozen=True)
class OpenedRun:
  """A trained run with its parameters in memory; see `comparison.measurement.TrainedRun`."""

  experiment: Experiment
  sharding_plan: ShardingPlan
  params: Any
  cost: Cost
  curve: Mapping[int, float]
  recorded: Mapping[int, float]

  @property
  def parameters(self) -> int:
    """Number of parameters."""
    return self.cost.parameters

  @property
  def flops(self) -> float:
    """FLOPs of the whole training."""
    return self.cost.flops

  @property
  def tokens(self) -> int:
    """Tokens trained on."""
    return self.cost.tokens

  @property
  def length(self) -> int:
    """Tokens per row."""
    return self.cost.length

  def score(self, *, length: int, tokens: int) -> Score:
    """Scores held-out text in rows of another length."""
    step = self.cost.tokens_per_step
    return perplexity.total(self.scores(length=length, tokens=tokens, batch_tokens=step))

  def scores(self, *, length: int, tokens: int, batch_tokens: int) -> list[Score]:
    """Scores held-out text batch by batch; see `comparison.measurement.TrainedRun`."""
    data = experiment_lib.read_as(self.experiment.eval_data, sequence_length=length)
    # All devices have the same number of rows, at least one.
    shards = OverMesh(self.sharding_plan).shards
    batch_size = shards * max(1, batch_tokens // (length * shards))
    batches = loader.batches(data.rows(), batch_size, shuffle=False, repeat=False)
    count = min(len(batches), math.ceil(tokens / (batch_size * length)))
    scorer = Scorer(self.experiment.model, self.sharding_plan)
    scores = list(scorer.each(self.params, (next(batches) for _ in range(count))))
    batches.close()
    return scores

  def recall(self, task: RecallTask, questions: int) -> Recalled:
    """Scores a recall task; see `comparison.measurement.TrainedRun`."""
    where = decode_sharding.of(self.sharding_plan)
    scorer = RecallScorer(self.experiment.model, self.experiment.tokenizer, where)
    return scorer(self.params, haystacks.with_text_of(task, self.experiment.eval_data), questions)

  def downstream(
    self, task: str, data: Path, *, fewshot: int, length: int | None, limit: int | None
  ) -> TaskScore:
    """Scores a task of lm-eval; see `comparison.measurement.TrainedRun`."""
    from evaluation.harness import HarnessModel

    own, where = self.experiment, decode_sharding.of(self.sharding_plan)
    model = HarnessModel(
      own.model,
      self.params,
      own.tokenizer,
      where=where,
      max_length=length or self.length,
      tokens_at_once=self.cost.tokens_per_step,
    )
    return harness_tasks.score(model, task, data, fewshot=fewshot, limit=limit)


class TrainedRuns:
  """The runs of a comparison in a folder, one per configuration.

  See `comparison.measurement.Runs`.
  """

  def __init__(
    self,
    comparison: Comparison,
    folder: Path,
    progress: ComparisonProgress,
    asked_by: str,
    trust: Trust = NOBODY,
    made_here: bool = True,
    peak_flops: Callable[[str], float | None] = lambda kind: None,
  ):
    """Sets the comparison and the folder of its runs.

    Args:
      comparison: the comparison.
      folder: folder of the run directories.
      progress: shows the runs' steps.
      asked_by: the command line.
      trust: other modules than this project's that opened runs may name.
      made_here: whether the user made the comparison.
      peak_flops: a device's bfloat16 FLOP/s by its kind, for MFU; None where it is unknown.
    """
    self._peak_flops = peak_flops
    self.models = tuple(comparison.models)
    self.sizes = tuple(comparison.sizes)
    self.seeds = tuple(comparison.seeds)
    self._comparison = comparison
    self._folder = folder
    self._progress = progress
    self._asked_by = asked_by
    self._trust, self._made_here = trust, made_here
    self._run_config = functools.cache(comparison.run_config)
    self._trials: Cached | None = None
    self._tuned = functools.cache(self._search)
    self._built = functools.cache(lambda spec: experiment_lib.build(self._config(spec)))
    self._account = functools.cache(self._account_of)
    self._require_two_texts = functools.cache(comparison.require_two_texts)
    self._files = functools.cache(lambda spec: experiment_lib.files_of(self._built(spec).eval_data))

  def tune_by(self, trials: Cached) -> None:
    """Sets where the results of the comparison's search of settings are stored."""
    self._trials = trials

  def cost(self, spec: RunSpec) -> Cost:
    """Returns the cost of a run's whole training from shapes, also of a run that is loaded."""
    if spec.trial is not None:
      whole = self.cost(dataclasses.replace(spec, trial=None, choices=()))
      tokens, flops = int(whole.tokens * spec.trial), whole.flops * spec.trial
      return dataclasses.replace(whole, tokens=tokens, flops=flops)
    return self._cost_of(spec)

  def flops(self, spec: RunSpec) -> float:
    """See `comparison.measurement.Runs`."""
    return self.cost(spec).flops

  def require_recall(self, spec: RunSpec, task: RecallTask, questions: int) -> None:
    """See `comparison.measurement.Runs`."""
    built = self._built(dataclasses.replace(spec, seed=self.seeds[0]))
    asked = dataclasses.replace(task, heldout_examples=questions)
    haystacks.with_text_of(asked, built.eval_data).require(built.tokenizer)

  def _cost_of(self, spec: RunSpec) -> Cost:
    """Returns the cost of a run with the setting that was found, which may change it."""
    counted, steps, tokens = self._account(dataclasses.replace(spec, seed=self.seeds[0]))
    return Cost(
      parameters=counted.parameter_count,
      tokens=steps * tokens,
      flops=counted.training_flops * steps * tokens,
      tokens_per_step=tokens,
      length=counted.length,
    )

  def identity(self, spec: RunSpec) -> str:
    """Returns an id of the run: equal if all bindings are, and the weights of a loaded run."""
    tuning = self._comparison.tuning
    if tuning is not None:
      self._require_two_texts(spec.model, spec.size)
    own = run_identity.identity(self._config(spec), self._comparison.folder)
    if tuning is not None and spec.trial is None:
      # The search follows from this. What it finds need not be known.
      own = results.digest([own, repr(tuning)])
    loaded = self._loaded(spec)
    if loaded is None:
      return own
    step = max(checkpoint.available_steps(loaded.path), default=0)
    contents = checkpoint_reader.sealed_contents(loaded.path / checkpoint.FOLDER / str(step)) or {}
    weights = contents.get(checkpoint_reader.CHECKSUMS)
    return results.digest([own, loaded.config_text(loaded.judge()), step, weights])

  def text(self, spec: RunSpec) -> list[str]:
    """Returns digests of the files that a loaded run is scored on, which may be edited.

    Empty for a run of the comparison: it is refused when its text has changed.
    """
    if self._loaded(spec) is None:
      return []
    return self._files(dataclasses.replace(spec, seed=self.seeds[0]))

  def directory(self, spec: RunSpec) -> Path:
    """The run's folder."""
    # From the configuration, because another spec may mean the same run.
    words = f"{spec.model} {spec.size} {self.cost(spec).length} tokens seed {spec.seed}"
    words = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-").lower()
    return self._folder / f"{words}-{self.identity(spec)[:8]}"

  def train(self, spec: RunSpec) -> OpenedRun:
    """See `comparison.measurement.Runs`.

    Raises:
      Stopped: a signal ended it; it has saved.
    """
    loaded = self._loaded(spec)
    if loaded is not None:
      return self._open(spec, loaded)
    directory = RunDirectory(self.directory(spec))
    spec = self._with_setting(spec)
    config = self._config(spec)
    built = self._experiment(spec)
    sharding_plan = built.sharding_plan()
    self._progress.expect_steps(built.options.steps)
    summary = running.train(
      built,
      config,
      directory,
      sharding_plan,
      asked_by=self._asked_by,
      trust=self._trust,
      made_here=self._made_here,
      progress=self._progress,
      peak_flops=self._peak_flops(sharding_plan.mesh.devices.flat[0].device_kind),
    )
    if summary.interrupted:
      # A trial has a name in the search, which its line of progress showed.
      name = (spec.trial is not None and self._progress.running_key) or spec
      raise Stopped(f"{name}, at step {summary.step}", summary.interrupted)
    cost = self._cost_of(spec)
    curve = _curve(directory, cost.tokens_per_step)
    return OpenedRun(built, sharding_plan, summary.state.params, cost, curve, curve)

  def _config(self, spec: RunSpec) -> Config:
    """Returns a run's configuration; where settings are searched, on the text of the figures."""
    tuning = self._comparison.tuning
    if tuning is not None and spec.trial is None:
      spec = dataclasses.replace(spec, choices=(*tuning.test, *spec.choices))
    return self._run_config(spec)

  def _with_setting(self, spec: RunSpec) -> RunSpec:
    """Adds the setting that was found for the run's model and size, after a search if need be."""
    if self._comparison.tuning is None or spec.trial is not None:
      return spec
    return dataclasses.replace(spec, choices=(*self._tuned(spec.model, spec.size), *spec.choices))

  def _search(self, model: str, size: str) -> tuple[str, ...]:
    cached = self._trials or (lambda key, measure: measure())
    return written(self._comparison.tuning.tuned(model, size, self, cached).best)

  def _loaded(self, spec: RunSpec) -> RunDirectory | None:
    """Returns the directory of a loaded run.

    Raises:
      UserError: it contains no run.
    """
    path = self._comparison.loaded.get(str(spec))
    if path is None:
      return None
    directory = RunDirectory(paths.of(path))
    directory.require_run()
    return directory

  def _open(self, spec: RunSpec, directory: RunDirectory) -> OpenedRun:
    """Opens a finished run, and measures its loss on the comparison's text."""
    found = trained.load(directory, "latest", trust=self._trust)
    own = self._experiment(spec)
    if found.tokenizer.describe() != own.tokenizer.describe():
      raise UserError(
        f"{directory.path}, loaded as {spec}, has another tokenizer than the comparison's text, "
        "so that losses per token cannot be compared. Load a run with the same tokenizer."
      )
    length, batch_size = found.experiment.sequence_length, found.experiment.batch_size
    counted = account(found.experiment.model, batch_size=batch_size, length=length)
    tokens = found.step * batch_size * length
    cost = Cost(
      parameters=counted.parameter_count,
      tokens=tokens,
      flops=counted.training_flops * tokens,
      tokens_per_step=own.batch_size * own.sequence_length,
      length=length,
    )
    experiment = dataclasses.replace(own, model=found.experiment.model)
    recorded = _curve(directory, batch_size * length)
    result = OpenedRun(experiment, found.sharding_plan, found.params, cost, {}, recorded)
    # The training text need not be here.
    rows = own.eval_data.rows()
    batches = own.eval_batches or loader.steps_per_pass(rows, own.batch_size)
    score = result.score(length=own.sequence_length, tokens=batches * cost.tokens_per_step)
    return dataclasses.replace(result, curve={tokens: score.loss})

  def _experiment(self, spec: RunSpec) -> Experiment:
    """Builds the run's experiment; runs that differ only in the seed share model and optimizer.

    So they are compiled once.
    """
    first = dataclasses.replace(spec, seed=self.seeds[0])
    folder = self._comparison.folder
    other, own = (run_identity.bound(self._config(one), folder) for one in (first, spec))
    if {name for name in own if own[name] != other.get(name)} <= {"experiment.Experiment.seed"}:
      return dataclasses.replace(self._built(first), seed=spec.seed)
    return self._built(spec)

  def _account_of(self, spec: RunSpec) -> tuple[Account, int, int]:
    built = self._built(spec)
    counted = account(built.model, batch_size=built.batch_size, length=built.sequence_length)
    return counted, built.options.steps, built.batch_size * built.sequence_length


def _curve(directory: RunDirectory, tokens_per_step: int) -> dict[int, float]:
  """Returns the held-out loss of a run's metrics by tokens trained on; imported runs have none."""
  file = directory.path / loop.METRICS_FILE
  return {
    record["step"] * tokens_per_step: json_files.number(record["heldout_loss"])
    for record in (read_metrics(file) if file.exists() else ())
    if "heldout_loss" in record
  }
