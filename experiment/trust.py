"""The argument `--trust`: modules that the user trusts. See `experiment.trust_check`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Trust:
  """Other modules than this project's that may run code.

  Attributes:
    modules: names of modules, or of packages with all their modules.
  """

  modules: tuple[str, ...] = ()

  @classmethod
  def of(cls, given: Iterable[str]) -> Trust:
    """Parses `--trust` arguments, each a comma-separated list of names."""
    names = (name.strip() for words in given for name in words.split(","))
    return cls(tuple(name for name in names if name))

  def covers(self, module: str) -> bool:
    """Whether a module, or a package that contains it, is trusted."""
    return any(name == ALL or f"{module}.".startswith(f"{name}.") for name in self.modules)


NOBODY = Trust()


def words(given: Iterable[str]) -> list[str]:
  """Returns the `--trust` arguments again, for the next command on the same run."""
  return [f"--trust={name}" for name in given]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds `--trust`."""
  parser.add_argument(
    "--trust",
    action="append",
    default=[],
    metavar="MODULE",
    help="a module outside this project that an opened run's configuration may use, or 'all'; not "
    "needed for runs that you made on this machine",
  )
