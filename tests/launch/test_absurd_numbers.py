"""Numbers on the command line that are too large for any machine: one line, at once."""

import re

import pytest

from base.errors import UserError
from experiment import step_memory
from launch import generate, train
from tests.launch.test_commands import folder, run_dir  # noqa: F401 - fixtures

RUN = ["gin/runs/griffin_quickstart.gin", "--run_dir=never"]


@pytest.mark.parametrize(
  "given",
  [
    {"processes": 10**30},
    {"processes": 0},
    {"processes": 10**30, "process": 10**29},
    {"process": 10**4000},
    {"join_seconds": 10**30},
    {"join_seconds": 10**12},
    {"coordinator": "localhost:" + "9" * 5000},
    {"coordinator": "a" * 3000},
  ],
  ids=lambda given: " ".join(given),
)
def test_of_hosts(given):
  options = {"processes": 2, "process": 0, "coordinator": "localhost:1", **given}
  with pytest.raises(UserError, match=r"^--") as error:
    train.main([*RUN, *(f"--{name}={value}" for name, value in options.items())])
  assert len(str(error.value)) < 300


@pytest.mark.parametrize("step", ["9" * 5000, "9" * 300, "99"])
def test_of_checkpoints(run_dir, step):  # noqa: F811
  with pytest.raises(UserError, match=r"has no checkpoint '?99") as error:
    generate.main([f"--run_dir={run_dir}", f"--checkpoint={step}"])
  assert len(str(error.value)) < 500


def test_a_step_that_does_not_fit_is_told_by_a_dry_run(folder, monkeypatch, capsys):  # noqa: F811
  monkeypatch.setattr(step_memory, "of_device", lambda: 2**20)
  assert train.main([str(folder / "griffin.gin"), "--dry_run"]) == 2
  printed = capsys.readouterr().out
  assert "memory of a device 1 MiB\n" in re.sub(" +", " ", printed)
  assert "A step does not fit into the memory of a device. Lower --gin.BATCH_SIZE" in printed
