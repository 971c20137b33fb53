"""Where a statement of a configuration stands, and the error for a mistake there."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from base.errors import UserError
from base.wording import one_line

GIN_ROOT = Path(__file__).resolve().parent.parent / "gin"


class ConfigError(UserError, ValueError):
  """A mistake in a configuration; the message is one line and says what to write instead."""


class Includes(ConfigError):
  """Text that includes a file where it must stand alone."""


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a statement stands.

  Attributes:
    source: a file's path, or the command-line argument.
    line: 1 for a file's first line; 0 for an argument.
    shared: whether the statement serves several configurations: one of them may have no use for it.
  """

  source: str
  line: int = 0
  shared: bool = False

  @property
  def is_argument(self) -> bool:
    """Whether the statement was given on the command line."""
    return not self.line

  @property
  def is_general(self) -> bool:
    """Whether the statement stands in a file of the gin folder, or in the copy that a run keeps."""
    if self.is_argument:
      return False
    file = Path(self.source)
    return file.is_relative_to(GIN_ROOT) or (file.parent / "operative_config.gin").is_file()

  def error(self, message: str) -> ConfigError:
    """The error for a mistake at this place."""
    return ConfigError(f"{self}: {message}")

  def __str__(self) -> str:
    if self.is_argument:
      return one_line(self.source)
    path = os.path.relpath(self.source)
    return f"{one_line(self.source if path.startswith('..') else path)}:{self.line}"
