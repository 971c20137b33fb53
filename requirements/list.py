"""Prints the project's requirements, one per line: `python requirements/list.py [extra ...]`."""

import pathlib
import sys
import tomllib


def main() -> None:
  path = pathlib.Path(__file__).parent.parent / "pyproject.toml"
  project = tomllib.loads(path.read_text())["project"]
  extras = project["optional-dependencies"]
  if unknown := [name for name in sys.argv[1:] if name not in extras]:
    sys.exit(f"{path.name} has no extra named {', '.join(unknown)}; it has {', '.join(extras)}.")
  requirements = list(project["dependencies"])
  for name in sys.argv[1:]:
    requirements += extras[name]
  print("\n".join(requirements))


if __name__ == "__main__":
  main()
