"""Prints the project's requirements, one per line: `python requirements/list.py [extra ...]`.

Commas separate extras too.
"""

import pathlib
import sys
import tomllib


def main() -> None:
  path = pathlib.Path(__file__).parent.parent / "pyproject.toml"
  project = tomllib.loads(path.read_text())["project"]
  extras = project["optional-dependencies"]
  names = [name for word in sys.argv[1:] for name in word.split(",") if name]
  if unknown := [name for name in names if name not in extras]:
    sys.exit(f"{path.name} has no extra named {', '.join(unknown)}; it has {', '.join(extras)}.")
  requirements = list(project["dependencies"])
  for name in names:
    requirements += extras[name]
  print("\n".join(requirements))


if __name__ == "__main__":
  main()
