"""A run that cannot resume with another optimizer or model stays unchanged."""

from __future__ import annotations

import pytest

from base.errors import UserError
from launch import train
from tests import small_run
from training.checkpoint import CheckpointError


@pytest.fixture
def run(tmp_path, monkeypatch):
  small_run.write(tmp_path / "run.gin")
  monkeypatch.chdir(tmp_path)
  assert train.main(["run.gin", "--run_dir=run", "--gin.STEPS=2", "--gin.WARMUP_STEPS=1"]) == 0
  return tmp_path / "run"


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ("optimizer/muon.gin", r"or start another run from it \(--init_from\)"),
    ("--gin.WIDTH=16", "of another model: use the configuration"),
  ],
)
def test_what_it_cannot_go_on_with_changes_nothing(run, change, says):
  before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
  arguments = ["run.gin", change, "--run_dir=run", "--gin.STEPS=3", "--gin.WARMUP_STEPS=1"]
  # The refusal without it does not advise what would be refused.
  with pytest.raises(UserError, match=says) as caught:
    train.main(arguments)
  assert "Or name another --run_dir." in str(caught.value)
  assert "--resume=force" not in str(caught.value)
  with pytest.raises(CheckpointError, match=says):
    train.main([*arguments, "--resume=force"])
  assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
  assert train.main(["--run_dir=run", "--gin.STEPS=3", "--resume=force"]) == 0
