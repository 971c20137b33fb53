"""Places of statements in a configuration, and the error for a mistake at a place."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from base import paths
from base.errors import UserError
from base.wording import one_line

GIN_ROOT = Path(__file__).resolve().parent.parent / "gin"


class ConfigError(UserError, ValueError):
  """A mistake in a configuration; the message is one line and says how to fix it."""


class Includes(ConfigError):
  """An include in a text that must not include files."""


@dataclasses.dataclass(frozen=True)
class Place:
  """The place of a statement: a line of a file, or a command-line argument.

  Attributes:
    source: a file's path, or the command-line argument.
    line: line number from 1; 0 for an argument.
    shared: whether the statement is for several configurations, so that one need not use it.
    note: what the file says there, if the statement was made from it and says something else.
  """

  source: str
  line: int = 0
  shared: bool = False
  note: str = ""

  @property
  def is_argument(self) -> bool:
    """Whether the statement is a command-line argument."""
    return not self.line

  @property
  def is_general(self) -> bool:
    """Whether the statement is in a file of the gin folder, or in a run's copy of it."""
    if self.is_argument:
      return False
    file = paths.of(self.source)
    return file.is_relative_to(GIN_ROOT) or (file.parent / "operative_config.gin").is_file()

  def error(self, message: str) -> ConfigError:
    """Makes the error for a mistake at this place."""
    return ConfigError(f"{self}: {message}")

  def __str__(self) -> str:
    if self.is_argument:
      return one_line(self.source)
    noted = f" ({self.note})" if self.note else ""
    return f"{one_line(paths.shown(self.source))}:{self.line}{noted}"
