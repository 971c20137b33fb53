"""Files that commands write do not replace those of a run."""

import importlib.util
import os

import pytest

from base import paths
from base.errors import UserError
from conversion import target_folder
from experiment import experiment
from experiment.run_directory import RunDirectory
from launch import check, compare, plan, runs, scaling_laws
from tests import bucket_servers

COMPILER = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed"
)


REFUSED = r"lies in the run directory .*, among its files\. Name a place outside of it for {}"


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
  run = run_in(tmp_path / "run")
  config, file = run.config_file, run.path / "vocabulary.json"
  file.write_text("{}")
  before = config.read_text()
  for place in (file, tmp_path / "run/new/plan.json"):
    with pytest.raises(UserError, match=REFUSED.format(f"--{option}")):
      command(f"--{option}={place}")
  with pytest.raises(SystemExit):  # It is no JSON, wherever it lies.
    command(f"--{option}={config}")
  assert config.read_text() == before
  assert file.read_text() == "{}"


def run_in(folder):
  run = RunDirectory(folder)
  run.write_config(experiment.load(["runs/hawk_quickstart.gin"], []), "", made_here=True)
  return run


def test_links_into_and_out_of_a_run_are_followed_and_are_its_files(tmp_path):
  run = run_in(tmp_path / "run")
  (tmp_path / "run/checkpoints").mkdir()
  (tmp_path / "run/vocabulary.json").write_text("{}")
  (tmp_path / "elsewhere").mkdir()
  links = {
    tmp_path / "folder": run.path / "checkpoints",
    tmp_path / "plan.json": run.path / "vocabulary.json",
    run.path / "out": tmp_path / "elsewhere",
  }
  for link, target in links.items():
    link.symlink_to(target)
  for place in (tmp_path / "folder/x.json", tmp_path / "plan.json", run.path / "out/x.json"):
    with pytest.raises(UserError, match=REFUSED.format("--json")):
      checked(f"--json={place}")
  circle = tmp_path / "circle"
  circle.symlink_to(circle)
  for place in (circle / "x.json", tmp_path / "elsewhere/x.json"):
    RunDirectory(place).require_outside_of_runs("--json")


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_run_in_a_bucket_keeps_its_files(scheme, monkeypatch):
  bucket_servers.use(monkeypatch)
  folder = paths.absolute(f"{scheme}://{bucket_servers.BUCKET}/kept/run")
  file = run_in(folder).config_file
  before = file.read_text()
  for place in (file, folder / "new/plan.json"):
    with pytest.raises(UserError, match=REFUSED.format("--json")):
      checked(f"--json={place}")
  with pytest.raises(UserError, match=REFUSED.format("--run_dir")):
    RunDirectory(folder / "runs/second").require_place()
  with (
    pytest.raises(UserError, match=REFUSED.format("the target")),
    target_folder.appearing(folder / "x"),
  ):
    pass
  # The run itself goes on, and its neighbours are free.
  for place in (folder, folder.parent / "second"):
    RunDirectory(place).require_place()
  assert file.read_text() == before


def test_pages_and_exported_figures_lie_outside_of_runs(tmp_path):
  run = run_in(tmp_path / "run")
  for main in (runs.main, scaling_laws.main):
    with pytest.raises(UserError, match=REFUSED.format("--page")):
      main([str(tmp_path), f"--page={run.path}/page.html"])
  for folder in (run.path, run.path / "figures"):
    with pytest.raises(UserError, match=REFUSED.format("--export")):
      compare.main([f"--output={tmp_path}", f"--export={folder}"])
