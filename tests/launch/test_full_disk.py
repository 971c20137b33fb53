"""Commands on a disk that is really full, and again once there is space."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from base import small_files
from conversion import target_folder
from launch import train
from tests import preparations
from training.metrics import MetricsFile

ROOT = Path(train.__file__).parents[1]
SMALL = [
  "gin/runs/griffin_quickstart.gin",
  "gin/data/text_files_bytes.gin",
  *(
    f"--gin.{name}={value}"
    for name, value in {
      "WIDTH": 32,
      "RNN_WIDTH": 32,
      "HEADS": 2,
      "DEPTH": 1,
      "SEQUENCE_LENGTH": 32,
      "BATCH_SIZE": 2,
      "STEPS": 4,
      "WARMUP_STEPS": 1,
      "loop.LoopOptions.checkpoint_every": 2,
      "experiment.Experiment.samples": "()",
    }.items()
  ),
]


@pytest.fixture
def disk(tmp_path):
  """A disk of 600 KB; `grow` gives it more."""
  folder = tmp_path / "disk"
  folder.mkdir()
  mounted = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder]
  try:
    subprocess.run(mounted, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f"no disk can be mounted here: {error}")
  yield folder
  subprocess.run(["umount", "--lazy", folder], check=True)


def grow(folder):
  subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)


@pytest.fixture
def text(tmp_path):
  folder = tmp_path / "text"
  folder.mkdir()
  for number in range(20):
    (folder / f"{number}.txt").write_text(f"Document {number} says hello.\n" * 40)
  return f"--gin.TEXT_FILES={folder}/*.txt"


def run(folder, *arguments):
  command = [sys.executable, "-m", f"launch.{arguments[0]}", *map(str, arguments[1:])]
  environment = {"PYTHONPATH": preparations.with_hook(ROOT)}
  return subprocess.run(
    command, cwd=folder, capture_output=True, text=True, env=os.environ | environment
  )


def refused(done):
  assert done.returncode == 2, done.stderr
  assert "Traceback" not in done.stderr
  (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
  assert "No space left on device" in line
  return line


def test_a_training_ends_with_a_line_and_goes_on_once_there_is_space(disk, tmp_path, text):
  command = ["train", *SMALL, text, f"--run_dir={disk}/run"]
  assert f"in {disk.name}/run" in refused(run(tmp_path, *command))
  grow(disk)
  done = run(tmp_path, *command)
  assert done.returncode == 0, done.stderr
  assert "held-out loss" in done.stdout
  assert (disk / "run/checkpoints/4").is_dir()


def test_rows_are_made_whole_or_not_at_all(disk, tmp_path, text):
  for file in tmp_path.glob("text/*.txt"):
    file.write_text("Nothing but text.\n" * 2000)
  cache = f"--gin.dataset.TextDataset.cache_dir={disk}/cache"
  command = ["train", *SMALL, text, cache, f"--run_dir={tmp_path}/run"]
  refused(run(tmp_path, *command))
  assert not list(disk.glob("cache/*/manifest.json"))
  assert not list(disk.glob("cache/.*.partial"))
  grow(disk)
  assert run(tmp_path, *command).returncode == 0


def test_small_files_conversions_and_metrics_name_the_place(disk):
  (disk / "fill").write_bytes(b"x" * os.statvfs(disk).f_bavail * 4096)
  with pytest.raises(OSError, match=r"No space left on device: '.*/config.gin'"):
    small_files.replace(disk / "config.gin", "x" * 5000)
  metrics = MetricsFile(disk / "metrics.jsonl")
  with pytest.raises(OSError, match=r"No space left on device: '.*/metrics.jsonl'"):
    metrics.write({"step": 1, "text": "x" * 5000})

  def convert():
    with target_folder.appearing(disk / "exported") as made, (made / "weights").open("wb") as file:
      file.write(b"x" * 50_000)

  (disk / "fill").write_bytes(b"x" * (os.statvfs(disk).f_blocks - 3) * 4096)
  with pytest.raises(OSError, match=r"No space left on device: '.*/exported'"):
    convert()
  assert {path.name for path in disk.iterdir()} == {"fill", "metrics.jsonl"}
