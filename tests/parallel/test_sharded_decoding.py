"""Prefill, decode and scores on eight devices give the tokens and figures of one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Griffin has Hawk's blocks too.
CASES = (
  "griffin:data=2,model=4",
  "griffin:data=2,seq=2,model=2,zero=3",
  "transformer:data=4,model=2,zero=3",
)


@pytest.fixture(scope="module")
def found():
  process = subprocess.run(
    [sys.executable, "-m", "tests.parallel.sharded_decoding", *CASES, "memory"],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  return {one["case"]: one for one in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_tokens_equal_those_of_one_device(found, case):
  rows = found[case]["one"]
  assert found[case]["mesh"] == rows
  assert found[case]["lean"] == rows
  assert len({len(row) for row in rows}) > 1  # they met the stop token at different times
  assert len({token for row in rows for token in row}) > 10  # else a constant would pass


@pytest.mark.parametrize("case", CASES)
def test_scores_equal_those_of_one_device(found, case):
  one, mesh = found[case]["scores"], found[case]["scores on the mesh"]
  for expected, given in zip(one["likelihoods"], mesh["likelihoods"], strict=True):
    # Sums of up to 40 float32 logarithms of about 4.
    assert given == [pytest.approx(expected[0], abs=2e-4), expected[1]]
  assert mesh["answers"] == one["answers"]
  assert len(set(one["answers"])) > 1


def test_samples_of_a_training_hold_no_copy_of_what_zero_has_split(found):
  memory = found["memory"]
  # An eighth is stored; one layer of 24 is gathered at a time, and there are activations.
  assert max(memory["prefill"], memory["advance"]) < 0.3 * memory["parameters"]
