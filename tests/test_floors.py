"""Each folder imports only from itself and from folders on lower floors; no file is long."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
  "base": 0,
  "kernels": 1,
  "parallel": 1,
  "config": 1,
  "data": 1,
  "layers": 2,
  "models": 3,
  "training": 4,
  "inference": 4,
  "evaluation": 5,
  "experiment": 6,
  "planning": 7,
  "comparison": 7,
  "conversion": 7,
  "contract": 8,
  "launch": 9,
}
# These know nothing of text, files and configurations.
PURE = ("kernels", "parallel", "layers", "models")


def imported_rooms(file: Path) -> set[str]:
  found = set()
  for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name.partition(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and not node.level:
      found.add(node.module.partition(".")[0])
  return found & {*FLOORS, "benchmarks", "tests"}


def modules(room: str) -> list[Path]:
  return list((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", FLOORS)
def test_imports_go_down(room):
  allowed = {room} | {other for other, floor in FLOORS.items() if floor < FLOORS[room]}
  if room in PURE:
    allowed -= {"data", "config"}
  files = modules(room)
  assert files
  wrong = {
    f"{file.relative_to(ROOT)} imports {other}"
    for file in files
    for other in imported_rooms(file) - allowed
  }
  assert not wrong


def test_no_file_has_more_than_400_lines():
  files = [file for folder in (*FLOORS, "benchmarks", "tests") for file in modules(folder)]
  long = {f"{file.relative_to(ROOT)}": count for file in files if (count := lines(file)) > 400}
  assert not long


def lines(file: Path) -> int:
  return len(file.read_text(encoding="utf-8").splitlines())


def test_every_folder_of_modules_has_a_floor():
  folders = {file.parent.name for file in ROOT.glob("*/__init__.py")}
  assert folders - {"tests"} == set(FLOORS)


def test_gin_is_parsed_by_config_alone():
  users = {
    room
    for room in FLOORS
    for file in modules(room)
    if any(
      (isinstance(node, ast.Import) and any(alias.name == "gin" for alias in node.names))
      or (isinstance(node, ast.ImportFrom) and node.module == "gin")
      for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    )
  }
  assert users == {"config"}


def test_commands_are_called_by_nobody():
  users = {
    str(file.relative_to(ROOT))
    for room in FLOORS
    if room != "launch"
    for file in modules(room)
    if "launch" in imported_rooms(file)
  }
  assert not users
