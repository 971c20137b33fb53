"""Opening a received run directory runs no code of it, waits for no file, and stays inside it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from base.errors import UserError
from experiment import directory_owner
from launch import convert, evaluate, generate, train
from tests import small_run
from training import checkpoint
from training.checkpoint import CheckpointError

SHORT = ["--gin.STEPS=2", "--gin.WARMUP_STEPS=1", "--gin.loop.LoopOptions.log_every=1"]
SHORT += ["--gin.WIDTH=16", "--gin.RNN_WIDTH=16", "--gin.experiment.Experiment.samples=[]"]
SHORT += ["--gin.loop.LoopOptions.checkpoint_every=1"]
EVIL = 'from pathlib import Path\nPath({marker!r}).write_text("")\n'


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sent")
  file = small_run.write(folder / "griffin.gin")
  assert train.main([str(file), f"--run_dir={folder / 'run'}", *SHORT]) == 0
  return folder / "run"


@pytest.fixture
def run_dir(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / "run")


class Payload:
  """Unpickled, it makes a file."""

  def __init__(self, marker: Path):
    self.marker = marker

  def __reduce__(self):
    return os.mkdir, (str(self.marker),)


def open_with_every_command(run_dir: Path, out: Path) -> None:
  """Opens a run with commands, as a user does; ignores their errors."""
  commands = (
    (generate.main, [f"--run_dir={run_dir}", "--prompt=a", "--max_tokens=2"]),
    (convert.main, [str(run_dir), str(out)]),
    (train.main, [f"--run_dir={run_dir}", "--gin.STEPS=3", "--resume=force"]),
  )
  for main, arguments in commands:
    with contextlib.suppress(UserError):
      main(arguments)


def files_of(run_dir: Path) -> list[Path]:
  return sorted(path for path in run_dir.rglob("*") if path.is_file())


def test_a_pickle_in_place_of_any_file_is_not_loaded(run_dir, tmp_path):
  marker = tmp_path / "ran"
  contents = pickle.dumps(Payload(marker))
  pickle.loads(contents)
  marker.rmdir()  # It would run.
  for kept in files_of(run_dir):
    if kept.parts[-3:-1] != ("checkpoints", "1") and "config.gin" not in kept.name:
      kept.write_bytes(contents)
  for extra in (
    "params.pkl",
    "state.pickle",
    "model.pt",
    "checkpoints/2/grain/process_0-of-1.json",
  ):
    (run_dir / extra).parent.mkdir(exist_ok=True)
    (run_dir / extra).write_bytes(contents)
  array = np.array([Payload(marker)], dtype=object)
  np.savez(run_dir / "checkpoints" / "2" / "params.npz", array, allow_pickle=True)
  np.save(run_dir / "params.npy", array, allow_pickle=True)
  open_with_every_command(run_dir, tmp_path / "out")
  assert not marker.exists()


def test_modules_that_lie_in_it_are_not_imported(run_dir, tmp_path, monkeypatch):
  marker = tmp_path / "ran"
  names = ("__init__", "config", "sitecustomize", "conftest", "tokenization_evil", "harness")
  for folder in (run_dir, run_dir / "checkpoints", run_dir / "hugging_face"):
    folder.mkdir(exist_ok=True)
    for name in names:
      (folder / f"{name}.py").write_text(EVIL.format(marker=str(marker)))
  automatic = {"auto_map": {"AutoTokenizer": ["tokenization_evil.T", None]}, "eos_token_id": 1}
  for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
    (run_dir / "hugging_face" / name).write_text(json.dumps(automatic))
  open_with_every_command(run_dir, tmp_path / "out")
  assert not marker.exists()


@pytest.mark.parametrize("file", ["_CHECKPOINT_METADATA", "params/_METADATA", "params/_sharding"])
def test_classes_that_a_checkpoint_names_are_not_imported(run_dir, tmp_path, monkeypatch, file):
  marker = tmp_path / "ran"
  (tmp_path / "modules").mkdir()
  (tmp_path / "modules" / "evil_class.py").write_text(EVIL.format(marker=str(marker)))
  monkeypatch.syspath_prepend(tmp_path / "modules")
  kept = run_dir / "checkpoints" / "2" / file
  text = kept.read_text()
  was = ("orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler",)
  was += ("jax.Array", "NamedSharding")
  for name in was:
    text = text.replace(name, "evil_class.Evil")
  assert "evil_class" in text
  kept.write_text(text)
  open_with_every_command(run_dir, tmp_path / "out")
  assert not marker.exists()


def test_a_link_in_place_of_a_file_is_not_written_through(run_dir, tmp_path):
  mine = tmp_path / "mine"
  mine.write_text("precious")
  names = ("loss.png", "vocabulary.json", "config.gin", "record.json", "data.json")
  for name in (*names, "operative_config.gin"):
    (run_dir / name).unlink()
    (run_dir / name).symlink_to(mine)
  assert train.main([f"--run_dir={run_dir}", "--gin.STEPS=3", "--resume=force"]) == 0
  assert mine.read_text() == "precious"
  assert not any((run_dir / name).is_symlink() for name in names)


def test_what_evaluation_keeps_is_not_written_through_a_link(run_dir, tmp_path):
  assert evaluate.main([f"--run_dir={run_dir}", "--by_position"]) == 0
  kept = sorted((run_dir / "evaluations").iterdir())
  assert {path.suffix for path in kept} == {".json", ".png"}
  mine = tmp_path / "mine"
  mine.write_text("precious")
  for path in kept:
    path.unlink()
    path.symlink_to(mine)
  assert evaluate.main([f"--run_dir={run_dir}", "--by_position"]) == 0
  assert mine.read_text() == "precious"
  assert not any(path.is_symlink() for path in kept)


def test_metrics_that_are_no_file_of_the_run_are_refused(run_dir, tmp_path):
  metrics = run_dir / "metrics.jsonl"
  (tmp_path / "mine").write_text("precious")
  makes = (os.mkfifo, lambda path: path.symlink_to(tmp_path / "mine"))
  for make in makes:
    metrics.unlink()
    make(metrics)
    with pytest.raises(UserError, match=r"metrics.jsonl is a link, a pipe or a device"):
      train.main([f"--run_dir={run_dir}", "--gin.STEPS=3", "--resume=force"])
  assert (tmp_path / "mine").read_text() == "precious"
  metrics.unlink()
  metrics.mkdir()
  with pytest.raises(UserError, match=r"metrics.jsonl is a folder"):
    train.main([f"--run_dir={run_dir}", "--gin.STEPS=3", "--resume=force"])


def test_a_pipe_in_place_of_a_file_is_not_waited_for(run_dir):
  names = ("loss.png", "vocabulary.json", "record.json", "data.json", "operative_config.gin")
  for name in names:
    (run_dir / name).unlink()
    os.mkfifo(run_dir / name)
  assert train.main([f"--run_dir={run_dir}", "--gin.STEPS=3", "--resume=force"]) == 0
  assert all((run_dir / name).is_file() for name in names)


@pytest.mark.parametrize(
  ("step", "name"),
  [(2, "params/_METADATA"), (2, "params/manifest.ocdbt"), (1, "_CHECKPOINT_METADATA")],
)
def test_a_checkpoint_with_a_pipe_is_passed_over(run_dir, step, name):
  file = run_dir / "checkpoints" / str(step) / name
  file.unlink()
  os.mkfifo(file)
  with pytest.raises(CheckpointError, match="is not a regular file but a pipe"):
    generate.main([f"--run_dir={run_dir}", f"--checkpoint={step}"])
  # Orbax reads what an older one says of itself, too.
  assert train.main([f"--run_dir={run_dir}", "--gin.STEPS=3", "--resume=force"]) == 0
  assert (run_dir / "damaged_checkpoints" / str(step)).is_dir()
  assert max(checkpoint.available_steps(run_dir)) == 3


def plant(path: Path, kind: str) -> None:
  if kind == "pipe":
    os.mkfifo(path)
  else:
    path.symlink_to("nothing" if kind == "a link to nothing" else "/dev/zero")


@pytest.mark.parametrize("kind", ["pipe", "a link to nothing", "a link to a device"])
def test_what_is_no_lock_file_is_taken_over(tmp_path, monkeypatch, kind):
  monkeypatch.setattr(directory_owner, "BEAT_SECONDS", 0.2)
  plant(tmp_path / directory_owner.LOCK_FILE, kind)
  with directory_owner.owned(tmp_path):
    assert directory_owner.holder(tmp_path).pid == os.getpid()
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["pipe", "a link to nothing", "a link to a device"])
def test_what_is_no_lock_file_holds_nothing(tmp_path, kind):
  plant(tmp_path / directory_owner.LOCK_FILE, kind)
  assert directory_owner.holder(tmp_path) is None
  assert not directory_owner.is_abandoned(tmp_path)
