"""Padding rows of the embedding change nothing, on any mesh."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONE_DEVICE = ("tied:multiple=16", "tied:multiple=64", "untied:multiple=16")
CASES = (
  *ONE_DEVICE,
  # Without an axis `data` there is nothing that ZeRO could split.
  "tied:model=8,zero=0,multiple=16",
  *(f"tied:data=2,model=4,zero={stage},multiple=64" for stage in (1, 3)),
  *(f"untied:data=2,model=4,zero={stage},multiple=16" for stage in range(4)),
  "untied:data=8,zero=3,multiple=64",
)


@pytest.fixture(scope="module")
def found():
  process = subprocess.run(
    [sys.executable, "-m", "tests.parallel.sharded_padding", *CASES],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  return {found["case"]: found for found in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_of_ids_do_not_depend_on_padding(found, case):
  assert found[case]["rows"] == 64
  # float32: sums over 61 or 64 columns are taken in another order, on eight devices too.
  assert found[case]["loss"] < 1e-6
  assert found[case]["gradient"] < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_padding_gets_no_gradient(found, case):
  assert found[case]["padding"] == 0.0
