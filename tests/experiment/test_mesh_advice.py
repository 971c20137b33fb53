"""The error about a mesh that does not fit suggests flags, and with those the command works."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from config.place import ConfigError
from experiment import experiment, mesh_advice

ROOT = Path(__file__).parents[2]
RUN = "gin/runs/griffin_quickstart.gin"
# One line per case: what the command would say on eight devices, or 'fits'.
PROGRAM = """
import sys
from experiment import experiment, mesh_advice
for case in sys.argv[1:]:
  mesh, *flags = case.split()
  built = experiment.build(experiment.load(["gin/runs/griffin_quickstart.gin", mesh], flags))
  try:
    mesh_advice.sharding_plan(built)
    print("fits")
  except experiment.ConfigError as error:
    print(error)
"""
ZERO3, MEGATRON = "gin/mesh/zero3.gin", "gin/mesh/megatron8_zero1.gin"
REFUSED = {
  ZERO3: "On 8 devices this fits: --gin.BATCH_SIZE=8 or --gin.MODEL_SHARDS=2.",
  MEGATRON: "On 8 devices this fits: --gin.MODEL_SHARDS=4 or --gin.MODEL_SHARDS=2.",
  f"{MEGATRON} --gin.MODEL_SHARDS=4 --gin.VOCAB_MULTIPLE=1": "--gin.VOCAB_MULTIPLE a multiple of 4",
  f"{ZERO3} --gin.BATCH_SIZE=8 --gin.MICROBATCHES=2": "this fits: --gin.BATCH_SIZE=16",
}
FIT = (
  f"{ZERO3} --gin.BATCH_SIZE=8",
  f"{ZERO3} --gin.MODEL_SHARDS=2",
  f"{MEGATRON} --gin.MODEL_SHARDS=4",
  "gin/mesh/sequence8.gin",
  "gin/mesh/data.gin --gin.BATCH_SIZE=8",
)


@pytest.fixture(scope="module")
def told():
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    "NPROC": "64",
  }
  cases = [*REFUSED, *FIT]
  process = subprocess.run(
    [sys.executable, "-c", PROGRAM, *cases],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  return dict(zip(cases, process.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_told_with_flags_that_would(told, case):
  assert REFUSED[case] in told[case]
  assert len(told[case]) < 500


@pytest.mark.parametrize("case", FIT)
def test_shipped_meshes_take_the_quickstart(told, case):
  assert told[case] == "fits"


def test_microbatches_that_do_not_divide_the_batch_are_refused():
  loaded = experiment.load([str(ROOT / RUN)], ["--gin.MICROBATCHES=3"])
  with pytest.raises(
    ConfigError, match=r"4 rows cannot be split into 3 microbatches.*MICROBATCHES"
  ):
    experiment.build(loaded)


def test_a_fault_that_is_not_the_mesh_s_is_told_as_it_is():
  """Without a mesh there are no sizes to suggest."""
  built = experiment.build(experiment.load([RUN], ["--gin.ATTENTION_KERNEL='fast'"]))
  with pytest.raises(ConfigError, match="attention: implementation 'fast' is unknown; available"):
    mesh_advice.sharding_plan(built)
