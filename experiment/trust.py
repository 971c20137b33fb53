"""Modules that the user trusts: the argument `--trust`. See `experiment.trust_check` for what it is
for.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Trust:
  """Modules beyond this project's whose code may run.

  Attributes:
    modules: names; of a package, all that is in it.
  """

  modules: tuple[str, ...] = ()

  @classmethod
  def of(cls, given: Iterable[str]) -> Trust:
    """The trust of `--trust` arguments, each a name or several between commas."""
    names = (name.strip() for words in given for name in words.split(","))
    return cls(tuple(name for name in names if name))

  def covers(self, module: str) -> bool:
    """Whether a module is named, or a package that it is in."""
    return any(name == ALL or f"{module}.".startswith(f"{name}.") for name in self.modules)


NOBODY = Trust()


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds `--trust`."""
  parser.add_argument(
    "--trust",
    action="append",
    default=[],
    metavar="MODULE",
    help="a module beyond this project's that the configuration of an opened run may use, or "
    "'all'; runs that "
    "you made on this machine need not be named",
  )
