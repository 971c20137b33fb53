"""Files that commands write do not replace those of a run."""

import importlib.util
import os

import pytest

from base.errors import UserError
from experiment import experiment
from experiment.run_directory import RunDirectory
from launch import check, plan

COMPILER = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed"
)


@pytest.fixture
def environment():
  """Restores what a command sets for the compiler of absent hardware."""
  before = dict(os.environ)
  yield
  os.environ.clear()
  os.environ.update(before)


def planned(given):
  return plan.main(["gin/runs/hawk_quickstart.gin", "--hardware=v5e-8", given])


def checked(given):
  return check.main(["--model=hawk", given])


@pytest.mark.parametrize(
  ("command", "option"),
  [
    pytest.param(planned, "json", marks=COMPILER),
    pytest.param(planned, "timeline", marks=COMPILER),
    (checked, "json"),
  ],
)
@pytest.mark.usefixtures("environment")
def test_a_file_of_a_run_is_not_replaced(tmp_path, command, option):
  config = experiment.load(["runs/hawk_quickstart.gin"], [])
  RunDirectory(tmp_path / "run").write_config(config, "", made_here=True)
  file = tmp_path / "run/config.gin"
  before = file.read_text()
  for place in (file, tmp_path / "run/new/plan.json"):
    with pytest.raises(
      UserError, match=rf"lies in the run directory .* outside of it for --{option}"
    ):
      command(f"--{option}={place}")
  assert file.read_text() == before
