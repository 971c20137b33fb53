"""Imports go down the floors or stay inside a folder."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
  "bounds": 0,
  "kernels": 1,
  "parallel": 1,
  "layers": 2,
  "models": 3,
  "training": 4,
  "inference": 4,
  "evaluation": 5,
  "launch": 6,
}
# Reads text into rows and knows nothing of what learns from them.
BESIDE = "data"
MAY_IMPORT_DATA = ("training", "inference", "evaluation", "launch")


def imported_folders(file: Path) -> set[str]:
  found = set()
  for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name.partition(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and not node.level:
      found.add(node.module.partition(".")[0])
  return found & {*FLOORS, BESIDE, "benchmarks", "tests"}


@pytest.mark.parametrize("folder", [*FLOORS, BESIDE])
def test_imports_go_down(folder):
  allowed = {folder}
  if folder != BESIDE:
    allowed |= {other for other, floor in FLOORS.items() if floor < FLOORS[folder]}
  allowed.add("bounds")
  if folder in MAY_IMPORT_DATA:
    allowed.add(BESIDE)
  files = list((ROOT / folder).rglob("*.py"))
  assert files
  wrong = {
    f"{file.relative_to(ROOT)} imports {other}"
    for file in files
    for other in imported_folders(file) - allowed
  }
  assert not wrong


def test_gin_is_parsed_by_launch_alone():
  folders = [*FLOORS, BESIDE]
  users = {
    folder
    for folder in folders
    for file in (ROOT / folder).rglob("*.py")
    if "import gin\n" in file.read_text(encoding="utf-8")
  }
  assert users == {"launch"}
