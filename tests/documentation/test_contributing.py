"""The guide for contributors names files and targets that exist."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

from tests.documentation.pages import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
PATHS = sorted(set(re.findall(r"(?:^|[`\s])([\w.-]+(?:/[\w.-]*)+|\w+\.(?:md|toml))", TEXT, re.M)))


def test_the_guide_names_paths():
  assert len(PATHS) > 40


@pytest.mark.parametrize("path", [path for path in PATHS if not path.startswith(".venv/")])
def test_paths_exist(path):
  assert (ROOT / path).exists()


def test_names_after_a_path_are_in_the_file():
  named = re.findall(r"`([\w/]+\.py)` \((?:the protocol )?`(\w+)`\)", TEXT)
  assert named
  for path, name in named:
    assert re.search(rf"\b{name}\b", (ROOT / path).read_text("utf-8")), f"{path} has no {name}"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake (\w+)", TEXT))))
def test_targets_exist(target):
  assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.M)


def test_quick_tests_exist():
  listed = re.search(
    r"^QUICK_TESTS := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text("utf-8"), re.M
  )
  for path in listed[1].replace("\\\n", " ").split():
    assert (ROOT / path).exists(), path


def listed(*extras):
  command = [sys.executable, str(ROOT / "requirements" / "list.py"), *extras]
  return subprocess.run(command, capture_output=True, text=True, check=False)


def test_extras_are_separated_by_spaces_or_commas():
  spaced = listed("tpu", "harness")
  assert listed("tpu,harness").stdout == spaced.stdout
  assert {"libtpu", "lm-eval==0.4.13"} <= set(spaced.stdout.split())
  unknown = listed("tpu,harnes")
  assert unknown.returncode
  assert unknown.stderr.startswith("pyproject.toml has no extra named harnes; it has gpu, tpu, ")


def test_help_lists_the_extras():
  """trackio needs another Pillow than the constraints name; `make docs` takes docs itself."""
  text = (ROOT / "pyproject.toml").read_text("utf-8")
  extras = set(tomllib.loads(text)["project"]["optional-dependencies"]) - {"trackio", "docs"}
  told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
  named = told.stdout.partition("extras of pyproject.toml: ")[2]
  assert set(named.replace(",", " ").split()) == extras
