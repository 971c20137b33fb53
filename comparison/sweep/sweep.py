"""Trains the runs of a sweep, each in a run directory of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from base import small_files
from base.errors import UserError
from comparison.sweep import jobs, outcome
from comparison.sweep.cells import FILE, Cell, SweptAxis
from comparison.sweep.outcome import Outcome
from config import source
from config.config import Config
from experiment import experiment as experiment_lib
from experiment import foreign_files, mesh_advice, run_list, running, trust
from experiment.experiment import Experiment
from experiment.run_directory import RunDirectory
from experiment.trust import Trust
from models.accounting import account
from parallel import processes
from training.loop import Summary
from training.memory_report import OutOfMemory
from training.record import TrainingError

# Why runs ended that starting again does not mend, by the name of their folder.
_FAILURES = "failed.json"
# The page with the curves of all runs.
PAGE = "sweep.html"


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The runs of a sweep in a folder.

  Attributes:
    files: gin files of all runs.
    bindings: arguments of all runs.
    axes: what differs.
    cells: a run each.
    output: the folder; each run has one of its own in it.
    trust: other modules than this project's that stored configurations may name.
  """

  files: tuple[str, ...]
  bindings: tuple[str, ...]
  axes: tuple[SweptAxis, ...]
  cells: tuple[Cell, ...]
  output: Path
  trust: Trust

  def config(self, cell: Cell) -> Config:
    """Reads the configuration of a run.

    Raises:
      UserError: a value is wrong; the message names the cell.
    """
    try:
      return self._load(cell, self.bindings_of(cell))
    except UserError as error:
      raise _of_cell(cell, error) from None

  def bindings_of(self, cell: Cell) -> list[str]:
    """The arguments of all runs that have an effect in this one, for `jobs` too.

    Where runs have different gin files, a value of all may have none in some.

    Raises:
      UserError: a value is wrong.
    """
    if all(axis.name != FILE for axis in self.axes):
      return list(self.bindings)
    warnings = self._load(cell, self.bindings, shared=True).warnings
    idle = tuple(text for text in self.bindings if any(w.startswith(f"{text}: ") for w in warnings))
    return [text for text in self.bindings if text not in idle]

  def arguments(self, cell: Cell) -> tuple[str, ...]:
    """What launch.train needs for a run besides its directory, the gin files first."""
    trusted = trust.words(self.trust.modules)
    return (*self.files, *cell.files, *self.bindings_of(cell), *cell.bindings, *trusted)

  def _load(self, cell: Cell, bindings: Sequence[str], shared: bool = False) -> Config:
    files, arguments = [*self.files, *cell.files], [*bindings, *cell.bindings]
    return experiment_lib.load(files, arguments, shared=shared, name=self.files[0])

  def experiment(self, cell: Cell, config: Config) -> Experiment:
    """Builds the experiment of a run.

    Raises:
      UserError: a part rejects its values; the message names the cell.
    """
    try:
      return experiment_lib.build(config)
    except UserError as error:
      raise _of_cell(cell, error) from None

  def require_all(self) -> None:
    """Checks every run before the first is trained.

    Raises:
      UserError: a value is wrong, or a run's folder holds another run.
    """
    self._require_place()
    left = set(self.bindings)
    for cell in self.cells:
      config = self.config(cell)
      left -= set(self.bindings_of(cell))
      self.experiment(cell, config)
      run = RunDirectory(self.output / cell.folder)
      if run.holds_run() and (different := run.differences(config, self.trust)):
        lines = "\n".join(map(str, different))
        raise UserError(
          f"{run} has another configuration than the sweep's {cell}:\n{lines}\n"
          "Name another --output, or the values of that sweep."
        )
    if left:
      raise UserError(f"{min(left)}: no effect in any run of the sweep. Leave it out.")

  def _require_place(self) -> None:
    """Raises UserError if the folder holds other files than a sweep's runs and what it writes."""

    def is_run(path: Path) -> bool:
      # A run that was killed in its first seconds has a lock alone.
      return RunDirectory(path).holds_run() or (
        path.is_dir() and all(inner.name.startswith(".") for inner in path.iterdir())
      )

    RunDirectory(self.output).require_outside_of_runs("--output")
    own = [_FAILURES, PAGE, jobs.FOLDER, *(cell.folder for cell in self.cells)]
    foreign_files.require_none(self.output, "--output", own, is_run)

  def description(self) -> list[tuple[str, ...]]:
    """Returns a table of the runs: parameters, tokens, FLOPs and choices; from shapes alone."""
    rows: list[tuple[str, ...]] = [
      ("parameters", "tokens", "FLOPs", *(axis.name for axis in self.axes))
    ]
    for cell in self.cells:
      built = self.experiment(cell, self.config(cell))
      counted = account(built.model, batch_size=built.batch_size, length=built.sequence_length)
      tokens = built.options.steps * built.batch_size * built.sequence_length
      flops = f"{counted.training_flops * tokens:.3g}"
      choices = (text for _, text in cell.choices)
      rows.append((f"{counted.parameter_count:,}", f"{tokens:,}", flops, *choices))
    return rows

  def outcome(self) -> Outcome:
    """Reads what the runs have reached, also while other processes train them."""
    runs = run_list.runs_in(self.output) if self.output.is_dir() else []
    return outcome.of(self.cells, self.axes, runs, self.failures())

  def left(self) -> list[Cell]:
    """The cells whose runs are neither finished nor failed, nor in training elsewhere."""
    done = (run_list.FINISHED, run_list.TRAINING, outcome.FAILED)
    return [found.cell for found in self.outcome().found if found.state not in done]

  def failures(self) -> dict[str, str]:
    """Reads why runs failed, by the name of their folder."""
    try:
      found = json.loads(small_files.read(self.output / _FAILURES) or b"{}")
    except (OSError, ValueError, RecursionError):
      return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}

  def train(
    self,
    cell: Cell,
    asked_by: str,
    *,
    require_mine: Callable[[], None],
    peak_flops: Callable[[str], float | None],
  ) -> Summary | None:
    """Trains a run, or continues it; None if the training itself failed, as where it diverged.

    Args:
      cell: the run.
      asked_by: the command line, for the first line of the stored configuration.
      require_mine: raises an error if another process has taken the sweep's folder.
      peak_flops: a device's bfloat16 FLOP/s by its kind, for MFU; None if unknown.

    Raises:
      UserError: anything else that is wrong; also a lack of memory, where several processes train.
    """
    config = self.config(cell)
    experiment = self.experiment(cell, config)
    sharding_plan = mesh_advice.sharding_plan(experiment)
    try:
      return running.train(
        experiment,
        config,
        RunDirectory(self.output / cell.folder),
        sharding_plan,
        asked_by=asked_by,
        trust=self.trust,
        peak_flops=peak_flops(sharding_plan.mesh.devices.flat[0].device_kind),
      )
    except TrainingError as error:
      # Memory may be full on one host alone: the others wait for it in the step.
      if isinstance(error, OutOfMemory) and processes.count() > 1:
        raise
      require_mine()
      if processes.is_first():
        failures = {**self.failures(), cell.folder: str(error)}
        small_files.replace(self.output / _FAILURES, json.dumps(failures, indent=1) + "\n")
      return None


def _of_cell(cell: Cell, error: UserError) -> UserError:
  """Returns the error with the cell, or with the value of the axis that it is about."""
  message = str(error)
  if any(message.startswith(f"{binding}: ") for binding in cell.bindings):
    return UserError(f"--over {message.removeprefix(source.OVERRIDE_PREFIX)}")
  return UserError(f"{cell}: {message}")
