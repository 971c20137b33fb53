"""Defines a comparison, set by gin, and makes its experiments."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from base import paths
from base.file_paths import FilePath, KeptPath
from base.ranges import Seed
from base.wording import near
from comparison.measurement import RunSpec
from config import config, file_choices
from config import source as gin_source
from config.config import Config, ConfigError
from config.source import Source
from experiment import experiment, file_kinds
from experiment.experiment import Experiment
from experiment.run_directory import RunDirectory

# The name of the search of settings among the parts.
TUNING = "tuning"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnUntrainedModels:
  """A part that measures untrained models.

  Attributes:
    part: a `comparison.measurement.Measurement`.
    choices: choices that are added to the comparison's, mainly a size.
  """

  part: Any
  choices: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnTrainedModels:
  """A part that measures models trained on the comparison's text.

  Attributes:
    part: a `comparison.measurement.TrainedMeasurement`.
  """

  part: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """Models, sizes, seeds and measurements.

  A choice is a gin file, such as 'models/griffin.gin', a macro, such as 'STEPS = 300', or a run
  directory, which stands for the configuration with which that run was trained. Model,
  shared and size choices together are like a file of gin/runs/: every training is an ordinary run.
  Files are read in that order; macros override files, and a model's macros override a size's, which
  override the shared ones.

  Attributes:
    models: maps each display name to the choices of the model.
    sizes: maps each name to the choices of the size, including its tokens, from small to large.
    shared: choices of all runs: mesh, kernels, data, training.
    seeds: seeds of the training runs.
    parts: maps each name, as in `--only`, to a measurement.
    title: title of the page.
    folder: base of relative paths in the choices: where the comparison was first launched.
    tuning: a `comparison.quality.tuning.Tuning`, which chooses settings of every model and size
      before its seeds are trained; None leaves the configuration's.
    loaded: runs to load instead of training: maps 'Griffin, 158k, seed 0' to a run directory. Its
      model may have another configuration, but must have the tokenizer of the comparison's text.
  """

  models: Mapping[str, Sequence[str]]
  sizes: Mapping[str, Sequence[str]]
  shared: Sequence[str]
  seeds: Sequence[Seed]
  parts: Mapping[str, OnUntrainedModels | OnTrainedModels]
  title: str
  folder: KeptPath = "."
  loaded: Mapping[str, FilePath] = dataclasses.field(default_factory=dict)
  tuning: Any = None

  def __post_init__(self):
    for name in ("models", "sizes", "seeds", "parts"):
      if not getattr(self, name):
        raise ValueError(f"{name} is empty: a comparison needs at least one.")
    specs = [
      str(RunSpec(model=model, size=size, seed=seed))
      for model in self.models
      for size in self.sizes
      for seed in self.seeds
    ]
    for name in self.loaded:
      if name not in specs:
        raise ValueError(f"loaded has {name!r}, not a run of this comparison{near(name, specs)}")
    if self.tuning is not None and self.loaded:
      raise ValueError("runs that are loaded are not tuned: take them out, or set TUNING = None.")
    if TUNING in self.parts:
      raise ValueError(f"part {TUNING!r} is the name of the search: give the part another.")
    for name, part in self.parts.items():
      if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"part {name!r}: use only lowercase letters, digits and _ in names.")
      if not isinstance(part, OnUntrainedModels | OnTrainedModels):
        raise ValueError(
          f"part {name!r} is a {type(part).__name__}. Wrap it in comparison.OnUntrainedModels or "
          "comparison.OnTrainedModels."
        )

  def run_config(self, spec: RunSpec) -> Config:
    """Returns the configuration of a training run.

    Raises:
      ConfigError: the model or size is unknown, a choice is wrong, or `spec` sets a window and the
        model has none.
    """
    if spec.size not in self.sizes:
      raise ConfigError(f"unknown size: {spec.size!r}{near(spec.size, self.sizes)}")
    choices = self.sizes[spec.size]
    changes: dict[str, int] = {"SEED": spec.seed}
    plain = self._config(spec.model, choices, changes, spec.choices)
    if spec.trial is not None:
      changes |= _shortened(plain, spec)
    elif spec.length is None and spec.window is None:
      return plain
    if spec.length is not None:
      changes |= _rows_of(experiment.build(plain), spec.length)
    if spec.window is not None:
      changes["WINDOW"] = spec.window
    changed = self._config(spec.model, choices, changes, spec.choices)
    if spec.trial is not None and experiment.build(changed).options.steps != changes["STEPS"]:
      raise ConfigError(
        f"{spec.model}, {spec.size}: STEPS does not set the steps of the training, so that no rate "
        "can be tried for a share of them. Take a gin/train/ file that uses it, or set TUNING = "
        "None."
      )
    if spec.window is not None and any("WINDOW has no effect" in w for w in changed.warnings):
      raise ConfigError(f"{spec.model} has no window. Leave it out of comparisons of windows.")
    return changed

  def require_two_texts(self, model: str, size: str) -> None:
    """Raises ConfigError if settings would be chosen on the rows that the figures are of."""
    if self.tuning is None:
      return
    spec = RunSpec(model=model, size=size, seed=self.seeds[0])
    texts = [
      experiment.text_alone(experiment.build(self.run_config(one)).eval_data)
      for choices in (self.tuning.validation, self.tuning.test)
      for one in [dataclasses.replace(spec, choices=tuple(choices))]
    ]
    if texts[0] == texts[1]:
      raise ConfigError(
        f"{model}, {size}: a learning rate would be chosen on the held-out rows of the figures, "
        f"because {', '.join(self.tuning.validation)} does not change EVAL_DATA. Give "
        "tuning.Tuning.validation and .test gin files that do, or set TUNING = None."
      )

  @property
  def all_parts(self) -> Mapping[str, OnUntrainedModels | OnTrainedModels]:
    """The parts in order, the search of settings first."""
    searched = {} if self.tuning is None else {TUNING: OnTrainedModels(part=self.tuning)}
    return searched | dict(self.parts)

  def run_directories(self) -> list[RunDirectory]:
    """Returns the runs whose configurations are read: those that are loaded, and choices."""
    parts = [part.choices for part in self.parts.values() if isinstance(part, OnUntrainedModels)]
    groups = [*self.models.values(), *self.sizes.values(), self.shared, *parts]
    folder = Path(self.folder).absolute()
    chosen = [folder / c for group in groups for c in group if not c.endswith(".gin")]
    loaded = [paths.of(path) for path in self.loaded.values()]
    return [RunDirectory(p) for p in loaded] + [
      run for path in chosen if (run := RunDirectory(path)).holds_run()
    ]

  def model_config(self, model: str, choices: Sequence[str]) -> Config:
    """Returns the configuration of an experiment with an untrained model to measure."""
    return self._config(model, choices, {})

  def _config(
    self,
    model: str,
    choices: Sequence[str],
    changes: Mapping[str, int],
    of_run: Sequence[str] = (),
  ) -> Config:
    if model not in self.models:
      raise ConfigError(f"unknown model: {model!r}{near(model, self.models)}")
    own = f"the choices of model {model!r}", self.models[model]
    shared = "the shared choices", self.shared
    over = f"the choices added to model {model!r}", choices
    last = "the choices of this run", of_run
    source = gin_source.read_file(gin_source.GIN_ROOT / "experiment.gin")
    folder = Path(self.folder).absolute()
    source += _sum(
      _read(choice, folder)
      for _, choices in (own, shared, over, last)
      for choice in choices
      if _is_read(choice, folder)
    )
    source += _sum(
      _macro(choice, place)
      for place, choices in (shared, over, own, last)
      for choice in choices
      if not _is_read(choice, folder)
    )
    source += _sum(_macro(f"{name} = {value}", "this run") for name, value in changes.items())
    return experiment.resolve(source, f"{model} of the comparison", folder)


def load(
  path: str | os.PathLike, arguments: Iterable[str] = (), *, text: str | None = None
) -> Config:
  """Reads and checks the configuration of a comparison, without its runs'.

  See `config.config.load`.

  Args:
    path: a gin file.
    arguments: bindings from the command line.
    text: the file's text if it was read already; None reads it.
  """
  own = gin_source.read_file(path) if text is None else gin_source.read_text(text, str(path))
  file_kinds.require(own, file_kinds.COMPARISON, str(path))
  return config.resolve(own + gin_source.read_arguments(arguments), Comparison, str(path))


def _rows_of(built: Experiment, length: int) -> dict[str, int]:
  """Returns bindings for rows of another length with the same tokens per step."""
  tokens = built.batch_size * built.sequence_length
  if length < 1 or tokens % length:
    raise ConfigError(
      f"rows of {length} tokens do not divide a step of {tokens}. Choose a length that does."
    )
  return {"SEQUENCE_LENGTH": length, "BATCH_SIZE": tokens // length}


def _shortened(config: Config, spec: RunSpec) -> dict[str, int]:
  """Returns bindings for a training of a share of the steps, and of the warm-up.

  Raises:
    ConfigError: the configuration does not follow the macros.
  """
  share = cast(float, spec.trial)
  if any("LEARNING_RATE has no effect" in warning for warning in config.warnings):
    raise ConfigError(
      f"{spec.model}, {spec.size}: LEARNING_RATE has no effect, so that no rate can be chosen. "
      "Take gin/train/ and gin/schedule/ files that use it, or set TUNING = None."
    )
  steps = experiment.build(config).options.steps
  changes = {"STEPS": max(2, round(steps * share))}
  warmup = config.macros.get("WARMUP_STEPS")
  if warmup is not None and isinstance(warmup.value, int):
    changes["WARMUP_STEPS"] = round(warmup.value * share)
  return changes


def _is_read(choice: str, folder: Path) -> bool:
  """Whether a choice is a gin file or a run directory, not a macro."""
  return choice.endswith(".gin") or RunDirectory(folder / choice).holds_run()


def _read(choice: str, folder: Path) -> Source:
  """Reads a choice that is a gin file or a run directory."""
  if choice.endswith(".gin"):
    return gin_source.read_file(file_choices.file_of(choice, folder))
  run = RunDirectory(folder / choice)
  return gin_source.read_text(run.config_text(run.judge()), str(run.config_file))


def _sum(sources: Iterable[Source]) -> Source:
  return functools.reduce(Source.__add__, sources, Source())


def _macro(choice: str, place: str) -> Source:
  source = gin_source.read_text(choice, place)
  if not source.statements or any(item.parameter for item in source.statements):
    raise ConfigError(
      f"{place}: {choice!r} is neither a gin file nor a macro such as 'STEPS = 300'. Put bindings "
      "of parameters into a gin file."
    )
  return source
