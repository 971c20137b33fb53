"""Devices get the rows that a single device would see, however the mesh orders them.

The devices of TPU slices come from the TPU compiler's topologies: it knows which host each belongs
to, and JAX arranges them in a mesh as on the real slice; nothing is run there. Shuffled devices of
real processes are: these exchange what they placed.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import loader, packing, rows, tokenizers
from experiment import experiment
from parallel import sharding_plan as sharding_plan_lib
from parallel.sharding_plan import ShardingPlan
from planning.hardware import catalogue
from tests.launch import hosts

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed"
)
MESHES = sorted(file.stem for file in (Path(__file__).parents[2] / "gin" / "mesh").glob("*.gin"))
# Slices of more than one host.
SLICES = [
  "v3:4x4", "v3:8x8", "v4:2x2x4", "v4:4x4x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:16x16",
  "v5p:2x2x4", "v5p:4x4x4", "v5p:4x4x8", "v6e:4x4", "v6e:8x8",
]  # fmt: skip
ROWS = (192, 256, 384, 512, 768)
LENGTH = 64
# Meshes beyond the files': data is what the others leave.
OTHERS = [
  {"MODEL_SHARDS": 2},
  {"MODEL_SHARDS": 4, "SEQUENCE_SHARDS": 2},
  {"SEQUENCE_SHARDS": 4},
]


@functools.cache
def devices(name: str):
  hardware = catalogue.hardware(name)
  os.environ.update(hardware.environment)
  return hardware.devices


def arranged(name: str, mesh: str, **macros: int) -> ShardingPlan | None:
  """The sharding plan of a mesh file on a slice; None for the file of a single device."""
  arguments = [f"--gin.{macro}={value}" for macro, value in macros.items()]
  run = Path(__file__).parents[2] / "gin" / "runs" / "griffin_quickstart.gin"
  file = run.parents[1] / "mesh" / f"{mesh}.gin"
  found = experiment.build(experiment.load([run, file], arguments)).mesh
  return found and found.sharding_plan((), devices(name))


def check(sharding_plan: ShardingPlan, batch: np.ndarray, read) -> int:
  """Simulates every process; `read(held)` are the rows it loads.

  Returns the number of processes.
  """
  placed = sharding_plan.batch.devices_indices_map(batch.shape)
  processes = {device.process_index for device in placed}
  for process in processes:
    held = sharding_plan.rows_of(process, *batch.shape)
    mine = read(held)
    whole = None if len(held) == len(batch) else held
    for device, index in placed.items():
      if device.process_index == process:
        np.testing.assert_array_equal(sharding_plan_lib.part(mine, whole, index), batch[index])
  return len(processes)


@needs_libtpu
@pytest.mark.parametrize("name", SLICES)
def test_every_device_gets_the_rows_of_the_single_device_batch(name):
  sharding_plans = [arranged(name, mesh) for mesh in MESHES]
  sharding_plans += [arranged(name, "data", **macros) for macros in OTHERS]
  tried = 0
  for sharding_plan in filter(None, sharding_plans):
    for count in ROWS:
      if count % sharding_plan.sizes["data"] == 0:
        batch = np.arange(count * LENGTH).reshape(count, LENGTH)
        assert check(sharding_plan, batch, batch.__getitem__) > 1
        tried += 1
  assert tried >= len(sharding_plans)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
  """Row files of rows that differ."""
  folder = tmp_path_factory.mktemp("rows")
  tokenizer = tokenizers.Bytes()
  packer = packing.Packer(tokenizer, LENGTH)
  writer = rows.RowWriter(folder, tokenizer, LENGTH)
  tokens = np.random.default_rng(0).integers(3, 259, 400 * LENGTH)
  tokens[-1] = tokenizer.eos_id
  for block in packer.add(tokens, len(tokens)):
    writer.write(*block)
  writer.write(*packer.finish())
  writer.finish({}, packer.counts)
  return rows.RowFiles(folder)


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:4x4x4"])
def test_the_loader_of_every_host_reads_what_its_devices_need(name, numbered):
  sharding_plan = arranged(name, "data")
  whole = loader.batches(numbered, 192, seed=3, start_step=5)
  batch = next(whole)["targets"]
  whole.close()

  def read(held):
    batches = loader.batches(numbered, 192, seed=3, start_step=5, slots=held.tolist())
    found = next(batches)["targets"]
    batches.close()
    return found

  assert check(sharding_plan, batch, read) == sharding_plan.mesh.size // 4


@needs_libtpu
def test_hosts_do_hold_rows_in_pieces():
  """The reason for the other tests: on this slice the rows of a host are no block of the batch."""
  sharding_plan = arranged("v5e:4x4", "data")
  held = [sharding_plan.rows_of(process, 192, LENGTH) for process in range(4)]
  assert any(np.any(np.diff(some) > 1) for some in held)
  assert sorted(np.concatenate(held)) == list(range(192))


def test_processes_with_shuffled_devices_make_the_single_device_batch(numbered):
  port = str(hosts.free_port())
  command = [sys.executable, "-m", "tests.parallel.shuffled_devices", str(numbered.directory)]
  processes = [
    subprocess.Popen(
      [*command, port, "4", str(index)],
      cwd=Path(__file__).parents[2],
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(4)
  ]
  for output in hosts.finish(processes):
    assert "equal" in output.splitlines(), output  # XLA's threads print beside it
