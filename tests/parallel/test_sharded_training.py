"""Training with AdamW and microbatches on eight devices equals that on one.

Arrays lie where they should.

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
  "transformer:data=2,seq=4,zero=1",
  # Chunks of time, whose states each device has its channels and heads of.
  "griffin:data=2,model=4,zero=3,grad_accum_steps=2,time_chunk=16",
  "adapted_griffin:data=2,seq=2,model=2,zero=3,time_chunk=16",
  # Of each chunk a device has fewer tokens than the convolution and the window look back to.
  "griffin:data=2,seq=4,zero=1,time_chunk=8",
  # TPU kernels with heads and time split, against chunks in XLA. `kimi_linear` takes twice as long
  # to compile and differs only in its decays.
  "gated_deltanet:data=2,seq=2,model=2,zero=1",
)
# States that are carried from batch to batch: the arrays are the same on any mesh, so that a run
# can go on with them on another. Steps that carry none do less of the same.
CARRIED = (
  "griffin:data=2,seq=2,model=2,zero=3,carry=1",
  "griffin:data=2,model=4,zero=1,grad_accum_steps=2,carry=1,time_chunk=16",
  "hawk:data=4,model=2,zero=2,grad_accum_steps=2,carry=1",
  # Passed to other rows, on other devices.
  "griffin:data=4,seq=2,zero=2,grad_accum_steps=2,carry=2",
)
# Parameters in bfloat16.
MASTER = "hawk:data=4,model=2,zero=1,keep=master"
STOCHASTIC = "hawk:data=8,zero=3,keep=stochastic"
# Lion's moments lie as AdamW's, and are updated element by element: one mesh shows that its signs
# are of summed gradients. Adafactor sums over rows and columns, Muon over matrices, which ZeRO and
# the model axis split. One model each, since each is trained on one device too.
OPTIMIZERS = (
  "hawk:data=4,model=2,zero=1,optimizer=lion",
  "hawk:data=2,seq=2,model=2,zero=3,optimizer=adafactor",
  "griffin:data=2,seq=2,model=2,zero=3,optimizer=muon",
)


@pytest.fixture(scope="module")
def differences():
  process = subprocess.run(
    [
      sys.executable,
      "-m",
      "tests.parallel.sharded_training",
      *CASES,
      *CARRIED,
      MASTER,
      STOCHASTIC,
      *OPTIMIZERS,
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  return {found["case"]: found for found in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize("case", [*CASES, *CARRIED])
def test_losses_and_parameters_equal_those_of_one_device(differences, case):
  assert differences[case]["losses"] < 1e-5
  # The delta rule's TPU kernels invert a chunk's matrix in another way than chunks in XLA: without
  # a split of heads or time too, the biases, which begin at zero, are 0.95e-5 apart.
  most = 3e-5 if "deltanet" in case else 1e-5
  assert differences[case]["parameters"] < most, differences[case]["worst"]
  assert differences[case]["states"] < 1e-5


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_other_optimizers_on_a_mesh_equal_themselves_on_one_device(differences, case):
  assert differences[case]["losses"] < 1e-5
  # Updates of full size of what is nearly zero: rounding draws Lion's signs, nearly Adafactor's.
  most = 3e-5 if "muon" in case else 1e-3
  assert differences[case]["parameters"] < most, differences[case]["worst"]


def test_zero_splits_a_master_copy_that_the_parameters_are_roundings_of(differences):
  found = differences[MASTER]
  assert found["rounded"]
  # Gradients of bfloat16 parameters are bfloat16: each device's, and their sum, are off by 2^-9.
  assert found["parameters"] < 2**-6, found["worst"]
  assert found["losses"] < 1e-3


def test_stochastic_rounding_draws_the_same_on_any_mesh(differences):
  """With other random numbers, seven tenths of the parameters differ after these steps."""
  found = differences[STOCHASTIC]
  assert found["different"] < 0.1
  assert found["losses"] < 1e-3
