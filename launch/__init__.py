"""The commands.

Names such as `data` and `models` are common: a folder or file of the user's with such a name must
not take the place of this project's. This is checked before any command imports one.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

# Nothing that a command imports.
_OTHERS = ("benchmarks", "launch", "tests")


def _require_own_packages(root: Path) -> None:
  """Ends the program with one line if Python finds another package of one of this project's names.

  A folder without `__init__.py` is no such package: Python prefers ours wherever it lies.
  """
  for own in sorted(root.glob("*/__init__.py")):
    name = own.parent.name
    found = PathFinder.find_spec(name)
    origin = found and found.origin and Path(found.origin).resolve()
    if name in _OTHERS or not origin or origin == own.resolve():
      continue
    other = origin.parent if origin.name == "__init__.py" else origin
    print(
      f"error: {other} takes the place of {own.parent}, which this command needs: Python finds it "
      "first. Rename it; or, if it lies in the working directory, start the command with python -P "
      f"and PYTHONPATH={root}.",
      file=sys.stderr,
    )
    sys.exit(2)


_require_own_packages(Path(__file__).resolve().parents[1])
