"""Every model of the zoo keeps the contract, as `python -m launch.check` runs it.

Slow because every variant is a program to compile: one process per model, that runs all checks.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation import contract
from launch import model_zoo

ROOT = Path(__file__).parents[2]
NAMES = model_zoo.names()


@functools.cache
def findings(name: str) -> tuple[int, str, dict[str, list[dict]]]:
  """Exit status, what was printed, and the findings of each check."""
  file = ROOT / ".pytest_cache" / "contracts" / f"{name}.json"
  file.unlink(missing_ok=True)
  process = subprocess.run(
    [sys.executable, "-m", "launch.check", f"--model={name}", f"--json={file}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert file.is_file(), process.stderr
  by_check: dict[str, list[dict]] = {}
  for record in json.loads(file.read_text()):
    by_check.setdefault(record["check"], []).append(record)
  return process.returncode, process.stdout, by_check


@pytest.mark.parametrize("check", contract.CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_model_keeps_the_contract(name, check):
  _, shown, by_check = findings(name)
  found = by_check[check]
  assert found
  assert not [record for record in found if record["outcome"] == "failed"], shown
  missing = [record["says"] for record in found if record["outcome"] == "not run"]
  assert len(missing) < len(found), missing[0]


@pytest.mark.parametrize("name", NAMES)
def test_exit_status_says_that_nothing_failed(name):
  status, shown, _ = findings(name)
  assert status == 0, shown
  assert " failed" not in shown.splitlines()[-1]


def test_the_models_of_the_paper_are_listed_and_what_others_include_is_not():
  assert {"griffin", "hawk", "transformer", "recurrent_gemma"} <= set(NAMES)
  assert "backbone" not in NAMES


@pytest.mark.parametrize(
  ("name", "constant"), [("griffin", True), ("hawk", True), ("transformer", False)]
)
def test_who_claims_a_state_of_constant_size(name, constant):
  _, _, by_check = findings(name)
  claims = [r["case"] for r in by_check["state size"] if "claims" in r["case"]]
  assert all(("claims constant size" in case) == constant for case in claims)
