"""Makes a comparison of runs that exist, from their directories alone."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from base import paths
from base.errors import UserError
from base.wording import one_line
from comparison.comparison import Comparison
from comparison.measurement import RunSpec
from comparison.run_identity import bound
from config import file_choices
from config import source as gin_source
from config.config import Config
from experiment import experiment as experiment_lib
from experiment import run_config
from experiment.experiment import Experiment
from experiment.run_directory import RunDirectory
from experiment.trust import Trust
from training import checkpoint

FILE = "compare/parts/of_runs.gin"
SIZE = "as trained"
_SEED = "experiment.Experiment.seed"
# Beyond so many bytes a name of a folder is cut.
_LONGEST = 80
# What separates the words of a name.
_BETWEEN = "-_., =/"


@dataclasses.dataclass(frozen=True)
class _Run:
  """A run to compare: its directory, configuration and experiment."""

  path: Path
  config: Config
  experiment: Experiment

  @property
  def but_seed(self) -> frozenset[tuple[str, str]]:
    """What the configuration sets, without the seed and the places of files."""
    return frozenset((name, text) for name, text in bound(self.config, "").items() if name != _SEED)

  @property
  def recorded_on(self) -> str:
    """Names the rows that the run's held-out losses are of."""
    own = self.experiment
    rows = own.eval_batches and own.eval_batches * own.batch_size
    return repr((experiment_lib.text_alone(own.eval_data), own.sequence_length, rows))


def split_bindings(files: Sequence[str], bindings: Sequence[str]) -> tuple[list[str], list[str]]:
  """Splits arguments into macros of gin files, such as those that name their text, and the others.

  Args:
    files: the gin files that are named with run directories.
    bindings: bindings of the command line.

  Returns:
    the macros as choices of a comparison, and the other bindings.

  Raises:
    ConfigError: a file or a binding cannot be read.
  """
  named = {
    item.selector
    for file in files
    for item in gin_source.read_file(file_choices.file_of(file, Path.cwd())).statements
    if not item.parameter
  }
  macros, others = [], []
  for binding in bindings:
    (item,) = gin_source.read_arguments([binding]).statements
    if item.parameter or item.selector not in named:
      others.append(binding)
    else:
      macros.append(f"{item.selector} = {item.value!r}")
  return macros, others


def gin_text(directories: Sequence[Path], choices: Sequence[str], trust: Trust) -> str:
  """Returns the gin file of a comparison of finished runs.

  Runs whose configurations differ in the seed alone are the seeds of one model, if every model has
  the same seeds. The first run is the baseline.

  Args:
    directories: run directories.
    choices: gin files with text to score the models on, and their macros; empty takes the runs'
      held-out text.
    trust: other modules than this project's that the runs' configurations may name.

  Raises:
    UserError: there are fewer than two runs, one is no run or has no checkpoint, their tokenizers
      differ, or their held-out texts differ and no other is given.
  """
  # Also by a link: two losses of one run are no seeds, and their difference is no difference.
  if len({path.resolve() for path in directories}) < len(directories):
    raise UserError("a run directory is named twice, or by a link too. Name each once.")
  if len(directories) < 2:
    raise UserError(f"{paths.shown(directories[0])} is one run. Name two or more to compare.")
  runs = [_read(path, trust) for path in directories]
  _require_one_text(runs, has_other=bool(choices))
  for run in runs:
    _require_checkpoint(run)
  models = _models(runs)
  seeds = [run.experiment.seed for run in next(iter(models.values()))]
  length = max(run.experiment.sequence_length for run in runs)
  first = runs[0].experiment
  values = {
    "TITLE": " and ".join([", ".join(list(models)[:-1]), list(models)[-1]]),
    "MODELS": {name: [str(group[0].path)] for name, group in models.items()},
    "SEEDS": tuple(seeds),
    "LOADED": {
      f"{name}, {SIZE}, seed {seed}": str(run.path)
      for name, group in models.items()
      for seed, run in zip(seeds, group, strict=True)
    },
    "SHARED": list(choices),
    "RECORDED": len({run.recorded_on for run in runs}) == 1,
    "BASELINE": next(iter(models)),
    "SCORED_LENGTH": length,
    "STEP_LENGTHS": (length, 4 * length),
    "STEP_TOKENS": max(4 * length, first.batch_size * first.sequence_length),
    "SAMPLE_LENGTHS": (min(64, length), min(256, 2 * length)),
    "TOKENS_BEFORE": (length // 2 or 1, 8 * length),
  }
  lines = [f"{name} = {value!r}" for name, value in values.items()]
  return "\n".join([f"include '{FILE}'", "", *lines, ""])


def require_models(comparison: Comparison, trust: Trust) -> None:
  """Raises UserError if the files of another text change the models: speed would be of others."""
  if not comparison.shared:
    return
  for name, choices in comparison.models.items():
    (size,) = comparison.sizes
    spec = RunSpec(model=name, size=size, seed=comparison.seeds[0])
    own = _read(Path(choices[0]), trust).experiment.model
    here = experiment_lib.build(comparison.run_config(spec)).model
    changed = [
      field.name
      for field in dataclasses.fields(own)
      if getattr(here, field.name, None) != getattr(own, field.name)
    ]
    if type(here) is not type(own) or changed:
      raise UserError(
        f"{', '.join(comparison.shared)} changes the model of {name} ({', '.join(changed)}). Name "
        "a gin file that sets the text alone, such as gin/data/heldout_files_bytes.gin."
      )


def default_output(directories: Sequence[Path]) -> Path:
  """Returns the folder of a comparison of these runs: comparisons/A_B_C."""
  name = one_line("_".join(path.name for path in directories)).replace("\\", "")
  return Path("comparisons", os.fsencode(name)[:_LONGEST].decode(errors="ignore"))


def _read(path: Path, trust: Trust) -> _Run:
  directory = RunDirectory(path)
  directory.require_run()
  config = run_config.load(directory, trust=trust, makes_rows=True)
  return _Run(path, config, experiment_lib.build(config))


def _require_checkpoint(run: _Run) -> None:
  """Raises UserError if a run has no checkpoint; tells if it is not finished."""
  shown, steps = paths.shown(run.path), checkpoint.available_steps(run.path)
  if not steps:
    raise UserError(f"{shown} has no checkpoint yet. Train it, or leave it out.")
  last, whole = max(steps), run.experiment.options.steps
  if last < whole and not checkpoint.is_parameters_alone(run.path):
    print(f"{shown} is compared as it is at step {last:,} of {whole:,}", file=sys.stderr)
  if run.experiment.init_from is not None:
    print(
      f"{shown} began with another run's weights: its tokens and FLOPs are those after it",
      file=sys.stderr,
    )


def _require_one_text(runs: Sequence[_Run], *, has_other: bool) -> None:
  """Raises UserError if the runs cannot be scored on the same tokens."""
  first = runs[0]
  for run in runs[1:]:
    names = f"{paths.shown(first.path)} and {paths.shown(run.path)}"
    if run.experiment.tokenizer.describe() != first.experiment.tokenizer.describe():
      raise UserError(
        f"{names} have different tokenizers, so that losses per token cannot be compared. Compare "
        "bits per byte: launch.evaluate prints them, with --data for the same text."
      )
    texts = [experiment_lib.text_alone(one.experiment.eval_data) for one in (first, run)]
    if not has_other and texts[0] != texts[1]:
      raise UserError(
        f"{names} have different held-out texts. Name a gin file of the text to score both on, "
        "such as gin/data/heldout_files_bytes.gin with --gin.EVAL_FILES=FILES."
      )


def _models(runs: Sequence[_Run]) -> dict[str, list[_Run]]:
  """Returns the runs of each model by its name, in order of seeds."""
  groups: dict[frozenset[tuple[str, str]], list[_Run]] = {}
  for run in runs:
    groups.setdefault(run.but_seed, []).append(run)
  seeds = {tuple(sorted(run.experiment.seed for run in group)) for group in groups.values()}
  names = _names([run.path for run in runs])
  if len(groups) > 1 and len(seeds) == 1 and len(set(*seeds)) == len(*seeds):
    found = [sorted(group, key=lambda run: run.experiment.seed) for group in groups.values()]
  else:
    found = [[run] for run in runs]
  named = [_name([names[run.path] for run in group]) for group in found]
  return {
    name if named.count(name) == 1 else names[group[0].path]: group
    for name, group in zip(named, found, strict=True)
  }


def _names(directories: Sequence[Path]) -> dict[Path, str]:
  """Returns the shortest end of each path that no other has."""
  found = {}
  for path in directories:
    for count in range(1, len(path.parts) + 1):
      name = one_line("/".join(path.parts[-count:]))
      if sum(other.parts[-count:] == path.parts[-count:] for other in directories) == 1:
        break
    found[path] = name
  return found


def _name(names: Sequence[str]) -> str:
  """What the names of a model's seeds have in common; the first if that is nothing."""
  if len(names) == 1:
    return names[0]
  same = itertools.takewhile(lambda letters: len({*letters}) == 1, zip(*names, strict=False))
  common = "".join(letters[0] for letters in same).rstrip(_BETWEEN)
  if common.lower().endswith("seed"):
    common = common[: -len("seed")].rstrip(_BETWEEN)
  return common or names[0]


def source_name(directories: Sequence[Path]) -> str:
  """Returns a name of the generated file for errors."""
  return f"the comparison of {', '.join(map(paths.shown, directories))}"
