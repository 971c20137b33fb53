"""Defines an experiment, and builds it from a checked configuration."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from base.file_paths import FilePath
from base.ranges import Count, Positive, Seed
from base.wording import plural
from config import config
from config import source as gin_source
from config.config import Config, ConfigError
from data import preparation
from data.dataset import Mixture, RegisteredMixture, TextDataset
from data.files import CorpusError
from data.lanes import refuse_mixture
from data.mixture import MixedRows
from data.rows import RowFiles
from data.tokenizers import Tokenizer, TokenizerError
from experiment import budget, file_kinds, layer_errors, mup_base, step_memory
from models import maximal_update, sizing
from models.accounting import ModelError, abstract_parameters, list_parameters
from models.language_model import LanguageModel
from parallel.mesh import Device
from parallel.sharding_plan import Parallelism, ShardingPlan, on_one_device
from training import carried_state, loop, passed_state, programs, rates
from training.losses import token_losses
from training.optimizer import Optimizer
from training.step import abstract_batch

_PARAMETERS = "experiment.experiment.Experiment.parameters"


class Dataset(Protocol):
  """A data set with rows that are made on first use; see `data.dataset`."""

  def rows(self) -> RowFiles | MixedRows:
    """Opens the rows; makes them if they are missing."""
    ...


class Text(Dataset, Protocol):
  """A dataset that is not a mixture."""

  @property
  def sequence_length(self) -> int: ...

  @property
  def vocabulary(self) -> Tokenizer: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A model, its data and its training.

  Attributes:
    model: the model.
    train_data, eval_data: training text and held-out text, with the same tokenizer and length.
    optimizer: the optimizer with its schedule.
    options: number of steps, checkpoints, evaluations and other options of the loop.
    batch_size: rows per step.
    eval_batches: batches of held-out text per evaluation; None reads all.
    seed: seed of the parameters, the order of the rows and the samples.
    samples: prompts that the trained model continues; '' starts a document.
    mesh: the devices and the sharding; None trains on one device.
    init_from: a run directory to take initial parameters from; None initialises them randomly.
    parameters: number of parameters that the model shall have, by the width of its MLPs (by its
      depth, if it has none); None leaves the model as it is. See `models.sizing`.
    mup_base: macros of the widths from which muP scales initial values and learning rates; None
      trains without muP. See `models.maximal_update`.
    chosen_size: what was chosen for that, in words; None without `parameters`.
  """

  model: LanguageModel
  train_data: Dataset
  eval_data: Dataset
  optimizer: Optimizer
  options: loop.LoopOptions
  batch_size: Count
  eval_batches: Count | None = None
  seed: Seed = 0
  samples: Sequence[str] = ("",)
  mesh: Parallelism | None = None
  init_from: FilePath | None = None
  parameters: Positive | None = None
  mup_base: Sequence[str] | None = None
  chosen_size: str | None = dataclasses.field(init=False, default=None)

  def __post_init__(self):
    if self.parameters is not None:
      model, chosen = sizing.sized(self.model, self.parameters)
      object.__setattr__(self, "model", model)
      object.__setattr__(self, "chosen_size", chosen)
    if not 0 <= self.seed < 2**32:
      raise ValueError(f"seed={self.seed} must be in [0, 2**32).")
    if self.batch_size < 1:
      raise ValueError(f"batch_size={self.batch_size} must be at least 1. Set --gin.BATCH_SIZE.")
    if self.batch_size % self.options.step.grad_accum_steps:
      raise ValueError(
        f"a batch of {plural(self.batch_size, 'row')} cannot be split into "
        f"{self.options.step.grad_accum_steps} "
        "microbatches. Set --gin.MICROBATCHES to a divisor of --gin.BATCH_SIZE."
      )
    if self.eval_batches is not None and self.eval_batches < 1:
      raise ValueError(f"eval_batches={self.eval_batches} must be at least 1, or None for all.")
    if self.optimizer.master_copy and self.model.param_dtype == jnp.float32:
      raise ValueError(
        "master_copy has no effect: the parameters are float32 already. Remove it, or set "
        "Backbone.param_dtype = 'bfloat16'."
      )
    if self.options.step.carry_state:
      carried_state.check_model(self.model)
      if isinstance(self.train_data, Mixture | RegisteredMixture):
        refuse_mixture()
    if self.options.step.initial_state == "passed":
      carried_state.check_model(self.model, f"Set {passed_state.OPTION}=zero")
    lengths = (
      first_part(self.train_data).sequence_length,
      first_part(self.eval_data).sequence_length,
    )
    if lengths[0] != lengths[1]:
      raise ValueError(
        f"training rows have {lengths[0]} tokens and held-out rows {lengths[1]}. "
        "Set the same sequence_length for both."
      )

  @property
  def sequence_length(self) -> int:
    """Tokens per row."""
    return first_part(self.train_data).sequence_length

  @property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer of the text."""
    return first_part(self.train_data).vocabulary

  def sharding_plan(self, devices: Sequence[Device] | None = None) -> ShardingPlan:
    """Returns the shardings on these devices (None: all visible); without a mesh, on the first.

    Raises:
      ConfigError: mesh, devices, rules, model and batch do not fit; it says what would.
    """
    try:
      parameters = list_parameters(self.model)
      if self.mesh is None:
        return on_one_device(parameters, devices[0] if devices else None)
      sharding_plan = self.mesh.sharding_plan(parameters, devices)
      pieces = self.options.step.grad_accum_steps
      rows = self.batch_size // pieces
      sharding_plan.check_batch(self.batch_size, self.sequence_length, pieces)
      # What only a layer knows, such as its number of heads: a trace, without arrays.
      jax.eval_shape(
        sharding_plan.losses(lambda params, batch: token_losses(self.model, params, batch)[0]),
        nn.unbox(abstract_parameters(self.model)),
        abstract_batch(rows, self.sequence_length),
      )
    except ValueError as error:
      raise ConfigError(layer_errors.explained(error)) from None
    return sharding_plan

  def check_step(self, sharding_plan: ShardingPlan) -> None:
    """Traces a training step, so that errors are raised before anything is written.

    Raises:
      ConfigError: model, batch and options do not fit.
    """
    step_memory.check(
      self.model, self.batch_size, self.sequence_length, self.options.step.grad_accum_steps
    )
    try:
      programs.trace(
        model=self.model,
        optimizer=rates.transformation(self.optimizer),
        options=self.options.step,
        sharding_plan=sharding_plan,
        batch_size=self.batch_size,
        length=self.sequence_length,
      )
    except ValueError as error:
      raise ConfigError(layer_errors.explained(error)) from None

  def rows(self) -> tuple[RowFiles | MixedRows, RowFiles | MixedRows]:
    """Opens the training rows and the held-out rows; makes missing ones together."""
    with naming_flags():
      preparation.prepare(self.texts())
      return self.train_data.rows(), self.eval_data.rows()

  def texts(self) -> list[TextDataset | RegisteredMixture]:
    """Lists the single texts and registered mixtures that the configuration names, of both."""
    return [*_texts(self.train_data), *_texts(self.eval_data)]

  def check_tokenizer(self) -> None:
    """Checks that the tokenizer fits the model.

    Raises:
      ConfigError: a tokenizer's file is missing, the model has too few tokens, or the held-out
        text is of another tokenizer.
    """
    try:
      tokenizer = self.tokenizer
      held_out = first_part(self.eval_data).vocabulary
      different = held_out.describe() != tokenizer.describe()
    except TokenizerError as error:
      raise ConfigError(config.explained(str(error))) from None
    if self.model.vocab_size < tokenizer.size:
      raise ConfigError(
        f"the tokenizer has {tokenizer.size} ids, the model's embedding {self.model.vocab_size}. "
        f"Set --gin.VOCAB_SIZE={tokenizer.size}."
      )
    if different:
      raise ConfigError(
        "training text and held-out text have different tokenizers. Set the same for both."
      )


@contextlib.contextmanager
def naming_flags() -> Iterator[None]:
  """Adds the arguments to change to errors about text."""
  try:
    yield
  except (CorpusError, TokenizerError) as error:
    if config.names_argument(str(error)):
      raise  # Names of the user's columns may be those of parameters.
    raise type(error)(config.explained(str(error))) from error


def _texts(data: Dataset) -> list[TextDataset | RegisteredMixture]:
  """Lists the single texts, or the registered mixture, that a dataset's configuration names."""
  if isinstance(data, Mixture):
    return list(data.components)
  return [data] if isinstance(data, TextDataset | RegisteredMixture) else []


def first_part(data: Dataset) -> Text:
  """Returns the dataset, or a mixture's first component: all have one tokenizer and length."""
  while isinstance(data, Mixture):
    data = data.components[0]
  return cast(Text, data)


def read_as(data: Dataset, **changes: Any) -> Dataset:
  """Returns the same text with another tokenizer or row length."""
  if isinstance(data, Mixture):
    components = tuple(read_as(part, **changes) for part in data.components)
    return dataclasses.replace(data, components=components)
  return dataclasses.replace(cast(TextDataset, data), **changes)


def files_of(data: Dataset) -> list[str]:
  """Returns a digest of the user's files of each text: names, sizes and times.

  Text without files or of a registered mixture has none, nor has Python's own, which changes with
  each of its releases, nor text whose files are gone or cannot be read.
  """
  found = []
  for text in _texts(data):
    if isinstance(text, RegisteredMixture):
      continue  # Only seqio knows its files.
    with contextlib.suppress(CorpusError):
      described = text.corpus.describe()
      if "files" in described and "python" not in described:
        found.append(described["files"])
  return found


def text_alone(data: Dataset) -> Dataset:
  """Returns what names the text alone: two of equal row lengths make the same rows if equal."""
  return read_as(data, sequence_length=1, cache_dir="cache")


def load(
  paths: str | os.PathLike | Sequence[str | os.PathLike | gin_source.Source],
  arguments: Iterable[str] = (),
  *,
  shared: bool = False,
  name: str | None = None,
) -> Config:
  """Reads and checks the configuration of an experiment.

  Args:
    paths: one or more gin files or parsed sources; later bindings replace earlier ones.
    arguments: bindings from the command line.
    shared: whether the arguments are for other configurations too, so that unused ones are
      warnings instead of errors.
    name: name of the configuration in errors; None is the first file's.

  Raises:
    ConfigError: see `config.config.load`.
  """
  if isinstance(paths, str | os.PathLike):
    paths = [paths]
  source = gin_source.Source()
  for path in paths:
    source += path if isinstance(path, gin_source.Source) else gin_source.read_file(path)
  file_kinds.require(source, file_kinds.RUN, name or str(paths[0]))
  source += gin_source.read_arguments(arguments, shared=shared)
  return resolve(source, name or str(paths[0]))


def resolve(source: gin_source.Source, name: str, folder: Path | None = None) -> Config:
  """Checks the configuration of an experiment; see `config.config.resolve`.

  The macro FLOPS sets the steps in place of STEPS; see `experiment.budget`.
  """
  wanted, source = budget.asked(source), budget.without(source)
  if wanted is None:
    return _resolved(source, name, folder)
  # Not with the steps that FLOPS replaces: they may be too few for the warm-up.
  counting = _resolved(source + budget.chosen(wanted, budget.COUNTING_STEPS), name, folder)
  steps = budget.steps(wanted, build(counting))
  found = _resolved(source + budget.chosen(wanted, steps), name, folder)
  if build(found).options.steps != steps:
    raise wanted.place.error(
      "FLOPS has no effect, because the run's steps do not follow the macro STEPS. Take a file of "
      "gin/train/ whose do."
    )
  return found


def _resolved(source: gin_source.Source, name: str, folder: Path | None) -> Config:
  asks_for_size = any(item.selector == "PARAMETERS" for item in source.statements)
  if asks_for_size:
    # Not in experiment.gin: a run without it has no such value, as those of earlier versions.
    source = gin_source.read_file("parameters.gin") + source
  found = config.resolve(source, Experiment, name, folder)
  if asks_for_size:
    _refuse_width(found)
  return found


def _refuse_width(found: Config) -> None:
  """Raises ConfigError for an MLP width beside PARAMETERS, which would replace it."""
  asked = [item for key, item in found.operative.items() if key.full_name == _PARAMETERS]
  if not any(item.value is not None for item in asked):
    return
  for key, item in found.operative.items():
    if key.parameter == "mlp_width" and item.place is not None and item.value is not None:
      raise item.place.error(
        f"{key.name} = {item.value} has no effect beside PARAMETERS, which chooses the width of "
        "the MLPs. Leave one of them out."
      )


def build(configuration: Config) -> Experiment:
  """Builds the experiment of a configuration; allocates no arrays and opens no files.

  Raises:
    ConfigError: a part rejects its values.
  """
  built = configuration.build()
  return built if built.mup_base is None else _scaled_from_base(built, configuration)


def _scaled_from_base(built: Experiment, configuration: Config) -> Experiment:
  """Returns the experiment with muP's initial values and learning rates.

  Raises:
    ConfigError: the base does not fit the model, or muP the optimizer.
  """
  if not hasattr(built.optimizer, "rate_factors"):
    raise ConfigError(
      f"{type(built.optimizer).__name__} has no muP here: its updates do not have the learning "
      "rate's size. Take gin/optimizer/adamw.gin or lion.gin, or set MUP_BASE = None."
    )
  macros = cast(Sequence[str], built.mup_base)
  found = resolve(mup_base.source(configuration, macros), "the base of muP")
  mup_base.require_effect(found, macros)
  base = found.build().model
  if built.parameters is not None and built.model.mlp is None:
    # PARAMETERS chose the depth, which is no width.
    base = sizing.of_depth(base, built.model.depth)
  # gin reads the bindings of the last build when functions that were passed uncalled are called.
  configuration.build()
  optimizer = cast(Any, built.optimizer)
  try:
    model = maximal_update.scaled(built.model, base)
    factors = maximal_update.rate_factors(built.model, base)
  except ModelError as error:
    raise ConfigError(str(error)) from None
  return dataclasses.replace(
    built,
    model=model,
    optimizer=dataclasses.replace(optimizer, rate_factors=factors),
  )
