"""Plans how long trainings take on hardware that need not be attached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from experiment.experiment import Experiment
from planning import plan
from planning.hardware.chip import Hardware
from planning.record import Plan


@dataclasses.dataclass(frozen=True)
class PlannedTraining:
  """A training by its plan.

  Attributes:
    seconds_per_step: the expected time of a step; None if it does not fit the hardware.
    steps: its steps.
    chips: that it takes.
  """

  seconds_per_step: float | None
  steps: int
  chips: int

  @property
  def chip_hours(self) -> float | None:
    """Hours of its steps times chips; compilation, evaluation and checkpoints are not in it."""
    if self.seconds_per_step is None:
      return None
    return self.seconds_per_step * self.steps * self.chips / 3600


def planned(
  experiments: Mapping[str, Experiment], hardware: Hardware, tell: Callable[[str], None]
) -> dict[str, PlannedTraining]:
  """Plans trainings by name; equal steps are compiled once.

  Args:
    experiments: model, mesh, rows and optimizer of each.
    hardware: what to compile for.
    tell: receives a line before each compilation.

  Raises:
    ConfigError: a model, its mesh and the hardware do not fit.
  """
  known: dict[str, Plan | None] = {}
  found = {}
  for name, one in experiments.items():
    # They may differ in the number of their steps, and with it in the schedule, alone.
    rows = one.batch_size, one.sequence_length
    same = repr((one.model, rows, one.mesh, type(one.optimizer), one.options.step))
    if same not in known:
      try:
        known[same] = plan.plan(one, hardware, model=name, tell=tell)
      except MemoryError:
        known[same] = None
    made = known[same]
    seconds = made.expected.seconds if made is not None and made.memory.fits else None
    found[name] = PlannedTraining(seconds, one.options.steps, hardware.chips)
  return found
