"""Commands typed outside the checkout, beside folders with names of this project's."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from base import commands

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["-m", "launch.train", "gin/runs/griffin_quickstart.gin", "--print_config"]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  return subprocess.run(
    [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
  )


@pytest.mark.parametrize("other", ["data/__init__.py", "models.py"])
def test_own_package_of_the_user_is_named_and_left_out_on_request(tmp_path, other):
  file = tmp_path / other
  file.parent.mkdir(exist_ok=True)
  file.write_text("raise SystemExit('imported the wrong one')\n")
  refused = run(tmp_path, *ARGUMENTS)
  assert refused.returncode == 2
  (line,) = refused.stderr.splitlines()
  name = other.partition("/")[0]
  assert line.startswith(f"error: {tmp_path / name} takes the place of {ROOT / name.split('.')[0]}")
  assert "python -P" in line
  assert run(tmp_path, "-P", *ARGUMENTS[:2], "--help").returncode == 0


def test_folders_of_files_are_no_packages(tmp_path):
  for name in ("data", "models", "base", "config", "training"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
  found = run(tmp_path, *ARGUMENTS)
  assert found.returncode == 0, found.stderr
  assert "STEPS" in found.stdout


def test_command_starts_by_its_path(tmp_path):
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "__init__.py").write_text("raise SystemExit('imported the wrong one')\n")
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  command = [sys.executable, str(ROOT / "launch" / "train.py"), *ARGUMENTS[2:]]
  found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert found.returncode == 0, found.stderr
  assert "STEPS" in found.stdout


def test_command_started_by_its_path_names_others_by_theirs(tmp_path, monkeypatch):
  """Python finds no `launch` from there."""
  folder = os.path.relpath(ROOT / "launch", tmp_path)
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  command = [sys.executable, f"{folder}/runs.py", "--folder=x"]
  found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert f"python {folder}/runs.py --help" in found.stderr
  assert "-m launch" not in found.stderr
  monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
  for file, words in {
    str(ROOT / "launch" / "train.py"): ("python", str(ROOT / "launch" / "generate.py")),
    str(tmp_path / "launch" / "train.py"): ("python", "-m", "launch.generate"),
  }.items():
    monkeypatch.setattr(sys, "argv", [file])
    assert commands.words("generate") == words


def test_every_command_starts_by_its_path():
  line = "if not __package__:  # started by its path"
  files = {file.name: file.read_text(encoding="utf-8") for file in ROOT.glob("launch/*.py")}
  commands = {name for name, text in files.items() if '__name__ == "__main__"' in text}
  assert commands == {name for name, text in files.items() if line in text}
