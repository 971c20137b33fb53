"""A run that is killed and started again equals an uninterrupted run, bit for bit."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.metrics import read_metrics
from training.step_costs import SPEEDS

ROOT = Path(__file__).parents[2]
STEPS = 120


def start(run_dir: Path, cache: Path) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", "tests.training.resume_run", str(run_dir), str(STEPS), str(cache)],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process: subprocess.Popen) -> str:
  output, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors
  return output


def told(run_dir: Path) -> list[dict]:
  """Returns the metrics that do not depend on time."""
  return [
    {name: value for name, value in record.items() if name not in SPEEDS}
    for record in read_metrics(run_dir / "metrics.jsonl")
  ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  folder = tmp_path_factory.mktemp("resume")
  output = finish(start(folder / "run", folder / "cache"))
  return output, told(folder / "run"), folder / "cache"


def wait_for_steps(run_dir: Path, process: subprocess.Popen, least: int) -> None:
  """Waits until the run has reported step `least`."""
  metrics = run_dir / "metrics.jsonl"
  while process.poll() is None:
    if metrics.exists() and any(r["step"] >= least for r in read_metrics(metrics)):
      return
    time.sleep(0.01)


def test_killed_at_random_moments_equals_never_killed(tmp_path, uninterrupted):
  output, records, cache = uninterrupted
  run_dir = tmp_path / "run"
  moments = random.Random(0)
  kills = 0
  # Each life is killed a random moment after it made progress of its own: between steps, in the
  # middle of a save, or while an older checkpoint is being removed.
  for least in (7, 40, 80):
    process = start(run_dir, cache)
    wait_for_steps(run_dir, process, least)
    time.sleep(moments.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kills += process.returncode == -signal.SIGKILL
  assert kills >= 2
  assert finish(start(run_dir, cache)) == output
  assert told(run_dir) == records
  lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "goodput" in line]
  walls = [line["wall_seconds"] for line in lines]
  assert walls == sorted(walls)
  # No more than the steps of the last line's history, and less than a life without kills.
  assert 0 < lines[-1]["goodput"] < 1


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, uninterrupted):
  """A run that SIGTERM ended, and the step at which it did."""
  run_dir = tmp_path_factory.mktemp("stopped") / "run"
  process = start(run_dir, uninterrupted[2])
  wait_for_steps(run_dir, process, 42)
  process.send_signal(signal.SIGTERM)
  return run_dir, int(finish(process).split()[0])


def test_sigterm_saves_and_exits_0_and_the_run_goes_on(tmp_path, uninterrupted, stopped):
  output, records, cache = uninterrupted
  run_dir = shutil.copytree(stopped[0], tmp_path / "run")
  assert 42 <= stopped[1] < STEPS
  assert (run_dir / "checkpoints" / str(stopped[1])).is_dir()
  assert finish(start(run_dir, cache)) == output
  assert told(run_dir) == records


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, uninterrupted, stopped):
  output, records, cache = uninterrupted
  run_dir = shutil.copytree(stopped[0], tmp_path / "run")
  newest = max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name))
  for file in (newest / "params").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  process = start(run_dir, cache)
  found, errors = process.communicate(timeout=300)
  assert f"skipped checkpoint {newest.name}" in errors
  assert found == output
  assert told(run_dir) == records
