"""A start traces the step once: the trace that checks whether everything fits is then run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import train
from tests import small_run

ROOT = Path(train.__file__).parents[1]
# One JSON list per mesh: the traces of a step until the run was finished.
PROGRAM = """
import sys, json
from launch import train
from training import step
decide, traces = step._decide, []
step._decide = lambda *args: traces.append(1) or decide(*args)
folder, *meshes = sys.argv[1:]
counts = {}
for number, mesh in enumerate(meshes):
  traces.clear()
  files = [f"{folder}/run.gin", f"gin/mesh/{mesh}.gin"]
  status = train.main([*files, f"--run_dir={folder}/{number}"])
  counts[mesh] = (status, len(traces))
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
  assert set(map(tuple, counts.values())) == {(0, 1)}, counts
