"""Loads a trained model with its tokenizer from a run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax

from base import paths
from base.errors import UserError
from config.place import ConfigError
from data import tiktoken_files, tokenizer_json, tokenizers
from data.tokenizers import Tokenizer
from experiment import experiment as experiment_lib
from experiment import mesh_advice, run_config
from experiment.experiment import Experiment
from experiment.run_directory import OPERATIVE_FILE, RunDirectory, stored_values
from experiment.trust import NOBODY, Trust
from layers import initial_state
from models.accounting import abstract_parameters, list_parameters
from parallel.sharding_plan import ShardingPlan, on_one_device
from parallel.tree_paths import joined
from training import checkpoint, stored_parameters
from training.padded_vocabulary import VocabularyRows
from training.step import join, split


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A trained model.

  Attributes:
    experiment: the run's experiment.
    params: the parameters of one checkpoint.
    step: the checkpoint's step.
    tokenizer: the tokenizer of the training text.
    run_dir: the run's directory.
    sharding_plan: the sharding of the parameters.
  """

  experiment: Experiment
  params: Any
  step: int
  tokenizer: Tokenizer
  run_dir: Path
  sharding_plan: ShardingPlan


def load(
  run: RunDirectory,
  which: str,
  *,
  mesh: str | None = None,
  files: Sequence[str] = (),
  arguments: Sequence[str] = (),
  trust: Trust = NOBODY,
) -> TrainedModel:
  """Loads a run's checkpoint.

  Args:
    run: the run's directory.
    which: 'best', 'latest' or a step.
    mesh: a gin file of the mesh to load it onto; None loads it onto one device, whatever the run's
      mesh.
    files: gin files of other data, whose macros `arguments` may bind too.
    arguments: bindings for these files' macros.
    trust: other modules than this project's that the run's configuration may name.

  Raises:
    UserError: the directory contains no run, or its configuration is not trusted.
    ConfigError: mesh, devices and model do not fit.
    CheckpointError: there is no such checkpoint, or it cannot be read.
  """
  config = run_config.load(run, [*([mesh] if mesh else ()), *files], arguments, trust=trust)
  experiment = experiment_lib.build(config)
  if files:
    # The size of the vocabulary in those files is that of another tokenizer.
    own = experiment_lib.build(run_config.load(run, trust=trust)).model
    model = experiment.model.clone(vocab_size=own.vocab_size)
    experiment = dataclasses.replace(experiment, model=model)
  sharding_plan = _sharding_plan(experiment) if mesh else None
  return _read(run, experiment, which, checkpoint.load_parameters, sharding_plan)


def opened(run: RunDirectory, which: str, *, trust: Trust = NOBODY) -> TrainedModel:
  """Opens a run's checkpoint.

  As `load`, but `params` is a `StoredParameters`, which reads each parameter when it is looked up.
  """
  experiment = experiment_lib.build(run_config.load(run, trust=trust))
  return _read(run, experiment, which, stored_parameters.open_parameters)


def _read(
  run: RunDirectory,
  experiment: Experiment,
  which: str,
  read: Callable[..., tuple[Any, int]],
  sharding_plan: ShardingPlan | None = None,
) -> TrainedModel:
  sharding_plan = sharding_plan or on_one_device(list_parameters(experiment.model))
  abstract = checkpoint.abstract_like(
    {checkpoint.PARAMS: nn.unbox(abstract_parameters(experiment.model))},
    sharding_plan.state,
  )[checkpoint.PARAMS]
  # Python parses no number with thousands of digits.
  is_step = which.isascii() and which.isdecimal() and len(which) < 20
  number = int(which) if is_step else which
  params, step = read(run.path, abstract, number, VocabularyRows.of(experiment.model))
  return TrainedModel(experiment, params, step, run.tokenizer(), run.path, sharding_plan)


def _sharding_plan(experiment: Experiment) -> ShardingPlan:
  """Returns the layout for generation, with the batch size rounded up to one that can be split."""
  step = dataclasses.replace(experiment.options.step, grad_accum_steps=1)
  options = dataclasses.replace(experiment.options, step=step)
  rows = jax.device_count()
  return mesh_advice.sharding_plan(
    dataclasses.replace(experiment, batch_size=rows, options=options)
  )


def check_start(experiment: Experiment) -> None:
  """Checks the tokenizer of the run in `init_from`, if it is set, and its muP.

  Raises:
    UserError: the run does not exist, or has another tokenizer, or another base of muP.
  """
  if experiment.init_from is None:
    return
  run = RunDirectory(paths.of(experiment.init_from))
  run.require_run()
  theirs, ours = run.tokenizer().describe(), experiment.tokenizer.describe()
  if theirs != ours:
    raise UserError(
      f"{run.path} was trained with another tokenizer: {theirs['size']} ids ({theirs['kind']}), "
      f"not the {ours['size']} of this text ({ours['kind']}). Add "
      f"{_data_for(theirs['kind'], run)}."
    )
  _check_mup(experiment, run)


def _check_mup(experiment: Experiment, run: RunDirectory) -> None:
  """Raises UserError if the run's parameters belong to another factor of the logits."""
  try:
    stored = stored_values(run.path / OPERATIVE_FILE)
  except ConfigError:  # lost
    return
  theirs = next((v for name, v in stored.items() if name.endswith("Experiment.mup_base")), None)
  own = experiment.mup_base
  has_effect = experiment.model.logit_factor != 1 or getattr(
    experiment.optimizer, "rate_factors", ()
  )
  if theirs is None and not has_effect:
    return
  if (own is None) != (theirs is None) or set(own or ()) != set(theirs or ()):
    remedy = "Set --gin.MUP_BASE=None"
    if theirs is not None:
      remedy = f'Add gin/train/mup.gin and --gin.MUP_BASE="{list(theirs)}"'
    raise UserError(
      f"{run.path} was trained with MUP_BASE = {theirs and list(theirs)}, not "
      f"{own and list(own)}: its logits would get another factor. {remedy}."
    )


def _data_for(kind: str, run: RunDirectory) -> str:
  """Suggests arguments that tokenize the text with a run's tokenizer."""
  if kind == "sentencepiece":
    model = f"--gin.VOCABULARY_MODEL={run}/{tokenizers.MODEL_FILE}"
    files = "gin/data/text_files_sentencepiece.gin or another file of gin/data/ for SentencePiece"
    return f"{files}, and {model}"
  if kind == "tokenizer.json":
    file = f"--gin.VOCABULARY_MODEL={run}/{tokenizer_json.FILE}"
    return f"gin/data/text_files_tokenizer.gin or another file of gin/data/ for it, and {file}"
  if kind == "tiktoken":
    file = f"--gin.VOCABULARY_MODEL={run}/{tiktoken_files.FILE}"
    return f"gin/data/text_files_tiktoken.gin or json_lines_tiktoken.gin, and {file}"
  if kind == "bytes":
    return "gin/data/text_files_bytes.gin or another file of gin/data/ for bytes"
  return "the file of gin/data/ that the run was trained with"


def start(experiment: Experiment, abstract: Any) -> Any:
  """Loads the newest parameters of `experiment.init_from`.

  Args:
    experiment: an experiment with `init_from`.
    abstract: shapes, dtypes and shardings of its model's parameters.

  Returns:
    the tree of parameters, without adapters and learned initial states that only the new model has.

  Raises:
    CheckpointError: the run's parameters are those of another model.
  """
  wanted, frozen = split(experiment.model, abstract)
  source = paths.of(cast(str, experiment.init_from))
  adapted = bool(jax.tree.leaves(frozen))
  if adapted or experiment.model.learned_states:
    saved = stored_parameters.parameter_paths(source)

    def kept(path: Any, leaf: Any) -> Any:
      is_state = initial_state.is_initial_state(joined(path))
      return leaf if (joined(path) in saved if is_state else not adapted) else None

    wanted = join(jax.tree_util.tree_map_with_path(kept, wanted), frozen)
  rows = VocabularyRows.of(experiment.model)
  return checkpoint.load_parameters(source, _without_none(wanted), rows=rows)[0]


def _without_none(tree: Any) -> Any:
  if not isinstance(tree, dict):
    return tree
  parts = {name: _without_none(part) for name, part in tree.items()}
  return {name: part for name, part in parts.items() if part is not None and part != {}}
