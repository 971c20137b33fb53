"""The held-out losses that checkpoints keep, damaged or of an earlier version."""

import json
import shutil
from pathlib import Path

import pytest

from tests.training.checkpoints import abstract, edit_sealed, nested_deeply, save
from training import checkpoint

# Orbax does not await the reads that were under way when one of them failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


METRICS_DAMAGE = {
  "emptied": lambda file: file.write_bytes(b""),
  "no JSON": lambda file: file.write_bytes(b"{"),
  "another number": lambda file: file.write_text('{"heldout_loss": 0.9}'),
  "another type": lambda file: file.write_text('{"heldout_loss": [1]}'),
  "an empty object": lambda file: file.write_text("{}"),
  "nested": nested_deeply,
  "no object": lambda file: file.write_text("[]"),
  "deleted": Path.unlink,
  "a folder": lambda file: (file.unlink(), file.mkdir()),
  "folder deleted": lambda file: shutil.rmtree(file.parent),
  "folder is a file": lambda file: (shutil.rmtree(file.parent), file.parent.write_text("")),
}


@pytest.fixture(scope="module")
def saved_best(tmp_path_factory):
  """A run with checkpoints 10, the best, and 20, and a log of their losses."""
  run_dir = tmp_path_factory.mktemp("best")
  save(run_dir, {10: 0.2, 20: 0.4}, keep=1)
  lines = ({"step": 10, "heldout_loss": 0.2}, {"step": 20, "heldout_loss": 0.4})
  (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return run_dir


@pytest.mark.parametrize("damage", METRICS_DAMAGE)
def test_damaged_metrics_do_not_change_which_is_best(saved_best, tmp_path, capsys, damage):
  run_dir = tmp_path / "run"
  shutil.copytree(saved_best, run_dir)
  METRICS_DAMAGE[damage](run_dir / "checkpoints" / "10" / "metrics" / "metrics")
  assert checkpoint.load_parameters(run_dir, abstract().params, "best")[1] == 10
  assert not capsys.readouterr().err
  # A run that goes on restores the file, and keeps the checkpoint.
  save(run_dir, {30: 0.5}, keep=1)
  assert checkpoint.available_steps(run_dir) == [10, 30]
  (told,) = capsys.readouterr().err.splitlines()
  assert told.endswith("checkpoints/10/metrics/metrics was damaged; it is restored")
  kept = json.loads((run_dir / "checkpoints" / "10" / "metrics" / "metrics").read_text())
  assert kept == {"heldout_loss": 0.2}
  save(run_dir, {40: 0.1}, keep=1)
  assert checkpoint.available_steps(run_dir) == [40]
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  "damage", ["emptied", "nested", "another type", "an empty object", "a folder", "folder is a file"]
)
@pytest.mark.parametrize("has_log", [True, False])
def test_an_earlier_version_s_metrics_are_restored_from_the_log_or_told(
  saved_best, tmp_path, capsys, damage, has_log
):
  run_dir = tmp_path / "run"
  shutil.copytree(saved_best, run_dir)
  for step in (10, 20):
    edit_sealed(run_dir / "checkpoints" / str(step), lambda sealed: sealed.pop("metrics"))
  if not has_log:
    (run_dir / "metrics.jsonl").unlink()
  METRICS_DAMAGE[damage](run_dir / "checkpoints" / "10" / "metrics" / "metrics")
  best = checkpoint.load_parameters(run_dir, abstract().params, "best")[1]
  told = capsys.readouterr().err.splitlines()
  if has_log:
    assert (best, told) == (10, [])
  else:
    assert best == 20
    (line,) = told
    assert "the held-out loss of checkpoint 10 is lost (" in line
    assert "10/metrics/metrics cannot be read)" in line
  for step in (30, 40):
    save(run_dir, {step: 0.5}, keep=1)
    # It may be the best.
    assert 10 in checkpoint.available_steps(run_dir)
  assert len(capsys.readouterr().err.splitlines()) == (1 if has_log else 2)


def test_an_earlier_version_s_number_is_compared_with_the_sealed_evaluation(tmp_path, capsys):
  run_dir = tmp_path / "run"
  save(run_dir, {10: 0.2, 20: 0.4}, keep=1)

  def change(sealed):
    del sealed["metrics"]
    sealed["position"]["heldout"] = {"heldout_loss": 0.2}

  edit_sealed(run_dir / "checkpoints" / "10", change)
  METRICS_DAMAGE["another number"](run_dir / "checkpoints" / "10" / "metrics" / "metrics")
  assert checkpoint.load_parameters(run_dir, abstract().params, "best")[1] == 10
  save(run_dir, {30: 0.5}, keep=1)
  assert checkpoint.available_steps(run_dir) == [10, 30]
  assert "metrics was damaged; it is restored" in capsys.readouterr().err


def test_metrics_where_none_were_saved_are_set_aside(tmp_path, capsys):
  save(tmp_path, {10: None, 20: 0.4}, keep=3)
  file = tmp_path / "checkpoints" / "10" / "metrics" / "metrics"
  file.parent.mkdir()
  file.write_text("{")
  save(tmp_path, {30: 0.5}, keep=3)
  assert checkpoint.available_steps(tmp_path) == [10, 20, 30]
  assert (tmp_path / "damaged_checkpoints" / "10_metrics").read_text() == "{"
  assert len(capsys.readouterr().err.splitlines()) == 1
  save(tmp_path, {40: 0.5}, keep=3)
  assert not capsys.readouterr().err
