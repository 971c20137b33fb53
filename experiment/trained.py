"""Opens what a run directory holds: the model with its parameters, and the vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax

from base.errors import UserError
from data import tokenizers
from data.tokenizers import Vocabulary
from experiment import experiment as experiment_lib
from experiment import mesh_advice, run_config
from experiment.experiment import Experiment
from experiment.run_directory import RunDirectory
from experiment.trust import NOBODY, Trust
from models.accounting import abstract_parameters, list_parameters
from parallel.sharding_plan import ShardingPlan, on_one_device
from training import checkpoint
from training.padded_vocabulary import VocabularyRows
from training.step import split


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A model that was trained.

  Attributes:
    experiment: the run's configuration, built.
    params: the parameters of one checkpoint.
    step: the checkpoint's step.
    vocabulary: that of the text it was trained on.
    run_dir: the run's directory.
    sharding_plan: where the parameters lie.
  """

  experiment: Experiment
  params: Any
  step: int
  vocabulary: Vocabulary
  run_dir: Path
  sharding_plan: ShardingPlan


def load(
  run: RunDirectory,
  which: str,
  *,
  mesh: str | None = None,
  arguments: Sequence[str] = (),
  trust: Trust = NOBODY,
) -> TrainedModel:
  """Reads a run's checkpoint: 'best', 'latest' or a step.

  Args:
    run: the run's directory.
    which: the checkpoint.
    mesh: a gin file of the mesh to read it onto; None reads it onto one device, whatever the run
      had.
    arguments: bindings for that file's macros.
    trust: modules beyond this project's that the run's configuration may name.

  Raises:
    UserError: the directory holds no run, or one whose configuration is not trusted.
    ConfigError: mesh, devices and model do not fit.
    CheckpointError: there is no such checkpoint, or it cannot be read.
  """
  config = run_config.load(run, [mesh] if mesh else (), arguments, trust=trust)
  experiment = experiment_lib.build(config)
  sharding_plan = (
    _sharding_plan(experiment) if mesh else on_one_device(list_parameters(experiment.model))
  )
  abstract = checkpoint.abstract_like(
    {checkpoint.PARAMS: nn.unbox(abstract_parameters(experiment.model))},
    sharding_plan.state,
  )[checkpoint.PARAMS]
  # Python reads no number of thousands of digits.
  is_step = which.isascii() and which.isdecimal() and len(which) < 20
  number = int(which) if is_step else which
  rows = VocabularyRows.of(experiment.model)
  params, step = checkpoint.load_parameters(run.path, abstract, number, rows)
  return TrainedModel(experiment, params, step, run.vocabulary(), run.path, sharding_plan)


def _sharding_plan(experiment: Experiment) -> ShardingPlan:
  """The mesh for generation: rows are added to what is asked until they can be split."""
  step = dataclasses.replace(experiment.options.step, grad_accum_steps=1)
  options = dataclasses.replace(experiment.options, step=step)
  rows = jax.device_count()
  return mesh_advice.sharding_plan(
    dataclasses.replace(experiment, batch_size=rows, options=options)
  )


def check_start(experiment: Experiment) -> None:
  """Compares an experiment with the run whose parameters it starts from, if it does.

  Raises:
    UserError: there is no such run, or its vocabulary is another.
  """
  if experiment.init_from is None:
    return
  run = RunDirectory(Path(experiment.init_from))
  run.require_run()
  theirs, ours = run.vocabulary().describe(), experiment.vocabulary.describe()
  if theirs != ours:
    raise UserError(
      f"the parameters in {run.path} are for a vocabulary of {theirs['size']} ids "
      f"({theirs['kind']}), the "
      f"text is read under another one of {ours['size']} ({ours['kind']}). Add "
      f"{_data_for(theirs['kind'], run)}."
    )


def _data_for(kind: str, run: RunDirectory) -> str:
  """What to type so that text is read under a run's vocabulary."""
  if kind == "sentencepiece":
    model = f"--gin.VOCABULARY_MODEL={run}/{tokenizers.MODEL_FILE}"
    files = "gin/data/text_files_sentencepiece.gin or another file of gin/data/ for SentencePiece"
    return f"{files}, and {model}"
  if kind == "bytes":
    return "gin/data/text_files_bytes.gin or another file of gin/data/ for bytes"
  return "the file of gin/data/ that the run was trained with"


def start(experiment: Experiment, abstract: Any) -> Any:
  """The newest parameters of `experiment.init_from` that a model has use for.

  Args:
    experiment: the experiment that starts from another run.
    abstract: shapes, types and shardings of its model's parameters.

  Returns:
    their tree; adapters, which the other run has not, are left out.

  Raises:
    CheckpointError: the run's parameters are of another model.
  """
  wanted, frozen = split(experiment.model, abstract)
  if jax.tree.leaves(frozen):
    wanted = frozen
  rows = VocabularyRows.of(experiment.model)
  source = Path(cast(str, experiment.init_from))
  return checkpoint.load_parameters(source, _without_none(wanted), rows=rows)[0]


def _without_none(tree: Any) -> Any:
  if not isinstance(tree, dict):
    return tree
  parts = {name: _without_none(part) for name, part in tree.items()}
  return {name: part for name, part in parts.items() if part is not None and part != {}}
