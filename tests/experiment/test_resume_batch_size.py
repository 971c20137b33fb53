"""A run that resumes with another batch size continues at the next row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import train
from tests import small_run
from training import checkpoint
from training.checksum import seal

METADATA = "_CHECKPOINT_METADATA"


def position(run_dir: Path, step: int) -> dict:
  folder = (run_dir / checkpoint.FOLDER / str(step)).absolute()
  return checkpoint.orbax().checkpointables_metadata(folder).custom_metadata["position"]


def age(run_dir: Path, step: int, rows: int) -> None:
  """Rewrites a checkpoint as older versions wrote it, with a position in batches."""
  file = run_dir / checkpoint.FOLDER / str(step) / METADATA
  contents = json.loads(file.read_text())
  sealed = contents["custom_metadata"]
  del sealed["crc32"]
  assert sealed["position"]["data"] == {"next_row": step * rows}
  sealed["position"]["data"] = {"next_index": step}
  contents["custom_metadata"] = seal(sealed)
  file.write_text(json.dumps(contents))


@pytest.mark.parametrize(
  ("old", "macro"),
  [
    (False, "BATCH_SIZE"),
    (True, "experiment.experiment.Experiment.batch_size"),
    (True, "BATCH_SIZE"),
  ],
)
def test_a_run_goes_on_at_the_next_row_whatever_the_batch_size(tmp_path, monkeypatch, old, macro):
  small_run.write(tmp_path / "run.gin")
  monkeypatch.chdir(tmp_path)
  command = ["run.gin", "--run_dir=run"]
  command += ["--gin.launch.experiment.Experiment.samples=()", "--resume=force"]
  assert train.main([*command, "--gin.STEPS=3", f"--gin.{macro}=8"]) == 0
  assert position(Path("run"), 3)["data"] == {"next_row": 24}
  if old:
    age(Path("run"), 3, 8)
  assert train.main([*command, "--gin.STEPS=5", f"--gin.{macro}=10"]) == 0
  assert position(Path("run"), 5)["data"] == {"next_row": 24 + 2 * 10}
