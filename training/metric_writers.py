"""Where the numbers of a run go besides its file of JSON lines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class OpenWriter(Protocol):
  """A writer of one run, until it is closed."""

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    """Takes the numbers of a step by name, such as 'loss' and 'heldout_loss'.

    Args:
      step: steps done.
      values: numbers that are not finite are None.
    """
    ...

  def close(self) -> None:
    """Writes what is left. Nothing is written afterwards."""
    ...


class MetricWriter(Protocol):
  """What a run's options name: a frozen dataclass that opens a writer when the training starts."""

  def open(self, run_dir: Path, step: int) -> OpenWriter:
    """Begins to write, on the first process of a run alone.

    Args:
      run_dir: the run's directory.
      step: steps done: 0 for a new run. What an earlier life wrote of later steps counts no more.
    """
    ...


@dataclasses.dataclass(frozen=True)
class TensorBoard:
  """Event files for TensorBoard.

  Attributes:
    folder: a folder of the run directory.
  """

  folder: str = "tensorboard"

  def __post_init__(self):
    if Path(self.folder).is_absolute() or ".." in Path(self.folder).parts or not self.folder:
      raise ValueError(
        f"folder={self.folder!r} must be a folder of the run directory, such as 'tensorboard'."
      )

  def open(self, run_dir: Path, step: int) -> OpenWriter:
    """See `MetricWriter`."""
    from tensorboardX import SummaryWriter

    return _Events(SummaryWriter(str(run_dir / self.folder), purge_step=step + 1))


class _Events:
  def __init__(self, writer):
    self._writer = writer

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    for name, value in values.items():
      self._writer.add_scalar(name, math.nan if value is None else value, step)

  def close(self) -> None:
    self._writer.close()
