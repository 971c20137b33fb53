"""How a user starts the commands, for messages that name the one to type."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

LAUNCH = Path(__file__).parents[1] / "launch"


def words(name: str) -> tuple[str, ...]:
  """Returns what starts `launch.<name>`, in the manner in which this process was started.

  That is `python -m launch.<name>`, which works where Python finds the package `launch`. If this
  process was started by its file's path, it is the path of the other file: from another folder
  only that works.
  """
  by_module = getattr(sys.modules["__main__"], "__spec__", None) is not None
  file = Path(sys.argv[0])
  if not by_module and file.resolve().parent == LAUNCH:
    return ("python", str(file.with_name(f"{name}.py")))
  return ("python", "-m", f"launch.{name}")


def line(name: str) -> str:
  """Returns `words`, quoted for a shell."""
  return shlex.join(words(name))
