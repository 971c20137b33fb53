"""A start traces the step once: the trace that checks whether everything fits is then run.

Another run of an equal configuration in the same process traces nothing, nor does one with another
learning rate and number of steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiment import model_zoo
from launch import train
from tests import small_run
from training import optimizer

ROOT = Path(train.__file__).parents[1]
# One JSON list per mesh: the exit statuses of two runs, which differ in seed, folder, learning rate
# and number of steps, and the traces of a step until each was finished.
PROGRAM = """
import sys, json
from launch import train
from training import programs, step
decide, traces = step._decide, []
step._decide = lambda *args: traces.append(1) or decide(*args)
folder, *meshes = sys.argv[1:]
counts = {}
for mesh in meshes:
  programs.make.cache_clear()  # on one device the meshes are equal
  counts[mesh] = []
  for seed in range(2):
    traces.clear()
    files = [f"{folder}/run.gin", f"gin/mesh/{mesh}.gin", "--gin.experiment.Experiment.samples=()"]
    files += [f"--gin.STEPS={2 + seed}", f"--gin.LEARNING_RATE={1e-3 * (1 + seed)}"]
    status = train.main([*files, f"--run_dir={folder}/{mesh}_{seed}", f"--gin.SEED={seed}"])
    counts[mesh] += [status, len(traces)]
print(json.dumps(counts))
"""
MESHES = {1: ("single", "data", "zero3"), 8: ("data", "sequence8")}


@pytest.mark.parametrize("devices", MESHES)
def test_a_step_is_traced_once(tmp_path, devices):
  sizes = "\nDEPTH = 1\nSTEPS = 2\nWARMUP_STEPS = 1\nBATCH_SIZE = 8\n"
  small_run.write(tmp_path / "run.gin", more=sizes)
  process = subprocess.run(
    [sys.executable, "-c", PROGRAM, str(tmp_path), *MESHES[devices]],
    cwd=ROOT,
    env={
      **os.environ,
      "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
      # Devices that a CPU plays wait for each other in threads.
      "NPROC": "64",
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  counts = json.loads(process.stdout.splitlines()[-1])
  assert set(map(tuple, counts.values())) == {(0, 1, 0, 0)}, counts


@pytest.mark.parametrize("name", model_zoo.names())
def test_models_are_equal_where_their_configurations_are(name):
  file = model_zoo.file_of(name)
  one, same, other = (model_zoo.build([file], more)[0] for more in ([], [], ["--gin.WIDTH=64"]))
  assert one == same
  assert hash(one) == hash(same)
  assert one != other


@pytest.mark.parametrize("schedule", [optimizer.warmup_cosine, optimizer.warmup_stable_decay])
def test_optimizers_are_equal_where_their_schedules_are(schedule):
  one, same, other = (
    optimizer.AdamW(learning_rate=schedule(peak=1e-3, steps=steps, warmup_steps=2))
    for steps in (20, 20, 30)
  )
  assert one.transformation() is same.transformation()
  assert one != other
