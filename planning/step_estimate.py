"""Estimates the time of training steps for a comparison, on hardware that need not be attached."""

from __future__ import annotations

import dataclasses
import os
from typing import cast

import optax

from config.config import ConfigError
from experiment.experiment import Dataset, Experiment
from models.language_model import LanguageModel
from parallel.sharding_plan import Parallelism
from planning.hardware import catalogue
from planning.hardware.chip import GIB
from planning.plan import plan
from training import loop
from training.optimizer import AdamW


@dataclasses.dataclass(frozen=True)
class _RowsWithoutTokens:
  """Rows with a length and no tokens: planning a step reads none."""

  sequence_length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepEstimate:
  """Expected time of a training step, compiled for the hardware (see `planning.plan`).

  Attributes:
    hardware: the hardware's name, such as 'v5e-8'.
    mesh: how the step is split over the devices; None splits the batch.
  """

  hardware: str
  mesh: Parallelism | None = None

  def __call__(self, model: LanguageModel, *, batch_size: int, length: int) -> float:
    """Estimates the seconds of a step with AdamW.

    Raises:
      ConfigError: the hardware is unknown, mesh, model and batch do not fit it, or it has too
        little memory; the message says what would fit.
    """
    try:
      hardware = catalogue.hardware(self.hardware)
      for name, value in hardware.environment.items():
        # XLA has read its flags already; the other variables are read by a compiler not yet loaded.
        if name == "XLA_FLAGS" and value not in os.environ.get(name, ""):
          raise ValueError(f"{self.hardware} needs {name}='{value}'. Set it before launching.")
        os.environ.setdefault(name, value)
      hardware.devices  # noqa: B018 - what the compiler does not know is refused here
    except ValueError as error:
      raise ConfigError(str(error)) from None
    rows = cast(Dataset, _RowsWithoutTokens(length))
    step = Experiment(
      model=model,
      train_data=rows,
      eval_data=rows,
      optimizer=AdamW(learning_rate=optax.constant_schedule(1e-4)),
      options=loop.LoopOptions(steps=1),
      batch_size=batch_size,
      mesh=self.mesh,
    )
    try:
      found = plan(step, hardware)
    except MemoryError as error:
      raise self._too_small(batch_size, length, str(error)) from None
    if not found.memory.fits:
      held, available = found.memory.bytes / GIB, found.memory.available / GIB
      need = f"it needs {held:.1f} of {available:.0f} GiB per device"
      raise self._too_small(batch_size, length, need)
    return found.expected.seconds

  def _too_small(self, batch_size: int, length: int, why: str) -> ConfigError:
    return ConfigError(
      f"{self.hardware}: a step of {batch_size} x {length} tokens does not fit: {why}. Take more "
      "devices, a mesh that splits more, or another remat policy."
    )
