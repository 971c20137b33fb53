"""Further writers of a run's metrics, in addition to its file of JSON lines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Protocol

from base import buckets
from base.ranges import Immaterial
from training.mirrored_folder import MirroredFolder


class OpenWriter(Protocol):
  """The open writer of a run."""

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    """Writes the numbers of a step by name, such as 'loss' and 'heldout_loss'.

    Args:
      step: steps done.
      values: numbers; None if not finite.
    """
    ...

  def close(self) -> None:
    """Flushes and closes the writer."""
    ...


class OpenTracker(OpenWriter, Protocol):
  """An open writer with more methods; a writer may have any of them."""

  def hyperparameters(self, values: Mapping[str, object]) -> None:
    """Writes the values of the run's configuration by name, once after the writer is opened."""
    ...

  def samples(self, step: int, texts: Mapping[str, str]) -> None:
    """Writes texts of the model by their prompts."""
    ...

  def picture(self, step: int, file: Path) -> None:
    """Writes a picture, a PNG file of the run directory."""
    ...


class MetricWriter(Protocol):
  """Protocol of the options' writers: frozen dataclasses that open a writer at the start.

  A class may name the packages that it `needs`, and the `extra` of pyproject.toml with them. All
  methods of the open writer are called in a thread of its own: see `training.tracking`.
  """

  def open(self, run_dir: Path, step: int) -> OpenWriter:
    """Opens a writer, only on the first process of a run.

    Args:
      run_dir: the run's directory.
      step: steps done, 0 for a new run. Earlier records of later steps are void.
    """
    ...


@dataclasses.dataclass(frozen=True)
class TensorBoard:
  """Writes event files for TensorBoard.

  Attributes:
    folder: a folder of the run directory.
  """

  folder: Annotated[str, Immaterial()] = "tensorboard"

  def __post_init__(self):
    if Path(self.folder).is_absolute() or ".." in Path(self.folder).parts or not self.folder:
      raise ValueError(
        f"folder={self.folder!r} must be a folder of the run directory, such as 'tensorboard'."
      )

  def open(self, run_dir: Path, step: int) -> OpenWriter:
    """See `MetricWriter`."""
    from tensorboardX import SummaryWriter

    target, mirror = run_dir / self.folder, None
    if buckets.in_bucket(target):
      mirror = MirroredFolder(target)
      target = mirror.path
    return _Events(SummaryWriter(str(target), purge_step=step + 1), mirror)


class _Events:
  def __init__(self, writer, mirror: MirroredFolder | None):
    self._writer, self._mirror = writer, mirror

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    for name, value in values.items():
      self._writer.add_scalar(name, math.nan if value is None else value, step)
    if self._mirror:
      self._mirror.copy_if_due(self._writer.flush)

  def hyperparameters(self, values: Mapping[str, object]) -> None:
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    self._writer.add_text("configuration", "\n".join(["| name | value |", "|---|---|", *rows]))

  def samples(self, step: int, texts: Mapping[str, str]) -> None:
    for prompt, text in texts.items():
      self._writer.add_text(f"sample {prompt!r}", f"{prompt}{text}", step)

  def picture(self, step: int, file: Path) -> None:
    from matplotlib import image

    pixels = image.imread(file)[..., :3]
    self._writer.add_image(file.stem, pixels, step, dataformats="HWC")

  def close(self) -> None:
    self._writer.close()
    if self._mirror:
      self._mirror.close()
