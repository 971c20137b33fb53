"""Training with AdamW and microbatches on eight devices equals that on one; arrays lie where they should.

Every model, ZeRO stage and mesh axis, for two steps: tests/contracts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = (
  "griffin:data=2,seq=2,model=2,zero=3",
  "hawk:data=4,model=2,zero=2,accumulate=2",
  "transformer:data=2,seq=4,zero=1",
  "adapted_griffin:data=2,seq=2,model=2,zero=3",
)


@pytest.fixture(scope="module")
def differences():
  process = subprocess.run(
    [sys.executable, "-m", "tests.parallel.sharded_training", *CASES],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  return {found["case"]: found for found in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_parameters_equal_those_of_one_device(differences, case):
  assert differences[case]["losses"] < 1e-5
  assert differences[case]["parameters"] < 1e-5, differences[case]["worst"]
