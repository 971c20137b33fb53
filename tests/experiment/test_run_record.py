"""Damaged, lost or changed files of a run directory: one line each, and restored if possible."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest

from base import small_files
from base.errors import UserError
from experiment import directory_owner, experiment
from experiment.run_directory import RunDirectory
from experiment.trust import Trust
from launch import evaluate, generate, train
from tests import small_run
from tests.experiment.received_configs import sent
from training.metrics import MetricsFile, read_metrics

SHORT = ["--gin.STEPS=2", "--gin.WARMUP_STEPS=1", "--gin.loop.LoopOptions.log_every=1"]
SHORT += ["--gin.WIDTH=16", "--gin.RNN_WIDTH=16", "--gin.experiment.Experiment.samples=[]"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  folder = tmp_path_factory.mktemp("text")
  return small_run.write(folder / "griffin.gin")


@pytest.fixture(scope="module")
def finished(file):
  path = file.parent / "run"
  assert train.main([str(file), f"--run_dir={path}", *SHORT]) == 0
  return path


@pytest.fixture
def run_dir(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / "run")


def again(run_dir, *more):
  return train.main([f"--run_dir={run_dir}", *more])


def config_of(run_dir):
  return (run_dir / "config.gin").read_text().partition("\n")[2]


def window_of(run_dir):
  """Returns the window of the experiment that evaluation would build."""
  from experiment import run_config

  return run_config.load(RunDirectory(run_dir)).macros["WINDOW"].value


def files_of(folder):
  """Returns all files but the results of evaluations, which evaluations may write."""
  files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
  return {p: p.read_bytes() for p in files if p.parent.name != "evaluations"}


def with_window_7(run_dir):
  """A run directory's configuration after one digit changed, and what the window was."""
  window = window_of(run_dir)
  changed = (run_dir / "config.gin").read_text().replace(f"WINDOW = {window}", "WINDOW = 7")
  (run_dir / "config.gin").write_text(changed)
  return changed, window


def test_a_digit_that_changed_in_the_configuration_is_put_back_by_who_holds_it_and_told(
  run_dir, capsys
):
  right = config_of(run_dir)
  changed, window = with_window_7(run_dir)
  RunDirectory(run_dir).restore()
  (line,) = capsys.readouterr().err.splitlines()
  assert f"WINDOW was 7, not {window}" in line
  assert "--resume=force" in line
  assert config_of(run_dir) == right
  assert (run_dir / "config.gin.damaged").read_text() == changed
  assert window_of(run_dir) == window  # said once
  assert not capsys.readouterr().err


def test_a_reader_goes_by_what_is_sealed_and_changes_nothing(run_dir, capsys):
  _, window = with_window_7(run_dir)
  (run_dir / "operative_config.gin").write_bytes(b"\xff")
  (run_dir / "data.json").unlink()
  before = files_of(run_dir)
  assert window_of(run_dir) == window
  (line,) = capsys.readouterr().err.splitlines()
  assert f"WINDOW was 7, not {window}" in line
  assert "left as it is" in line
  assert evaluate.main([f"--run_dir={run_dir}"]) == 0
  assert generate.main([f"--run_dir={run_dir}", "--max_tokens=1"]) == 0
  assert train.main([f"--run_dir={run_dir}", "--print_config"]) == 0
  assert f"WINDOW = {window}" in capsys.readouterr().out
  assert files_of(run_dir) == before


def test_a_reader_repairs_nothing_where_another_process_trains(run_dir, tmp_path):
  with_window_7(run_dir)
  before = files_of(run_dir)
  with directory_owner.owned(run_dir):
    assert generate.main([f"--run_dir={run_dir}", "--max_tokens=1"]) == 0
    (run_dir / "config.gin").unlink()
    assert generate.main([f"--run_dir={run_dir}", "--max_tokens=1"]) == 0
    assert not (run_dir / "config.gin").exists()
  del before[run_dir / "config.gin"]
  assert files_of(run_dir) == before


@pytest.mark.parametrize("name", ["config.gin", "record.json", "checkpoints"])
def test_a_file_that_cannot_be_read_this_time_is_not_damaged(run_dir, name, monkeypatch):
  before = files_of(run_dir)
  real = os.open

  def failing(path, *args, **kwargs):
    if name in str(path):
      raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
    return real(path, *args, **kwargs)

  monkeypatch.setattr(small_files, "_PAUSE_SECONDS", 0)
  monkeypatch.setattr(os, "open", failing)
  with pytest.raises(OSError, match="Input/output error"):
    RunDirectory(run_dir).restore()
  monkeypatch.undo()
  assert files_of(run_dir) == before


def test_a_read_that_fails_once_is_tried_again(run_dir, monkeypatch, capsys):
  real, failed = os.open, set()

  def failing_once(path, *args, **kwargs):
    if path not in failed and str(path).startswith(str(run_dir)):
      failed.add(path)
      raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
    return real(path, *args, **kwargs)

  monkeypatch.setattr(small_files, "_PAUSE_SECONDS", 0)
  monkeypatch.setattr(os, "open", failing_once)
  RunDirectory(run_dir).restore()
  assert len(failed) >= 4
  assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.gin", "operative_config.gin", "data.json", "record.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(run_dir, name, capsys):
  right = (run_dir / name).read_text().partition("\n")[2]
  (run_dir / name).unlink()
  os.mkfifo(run_dir / name)
  assert generate.main([f"--run_dir={run_dir}", "--max_tokens=1"]) == 0
  if name == "record.json":
    return
  RunDirectory(run_dir).restore()
  assert name in capsys.readouterr().err
  assert (run_dir / name).read_text().partition("\n")[2] == right


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\0", b"WIDTH = = 3\n", b"WIDTH = 5\n"])
@pytest.mark.parametrize("name", ["config.gin", "operative_config.gin"])
def test_a_configuration_that_is_lost_or_damaged_is_put_back(run_dir, name, content, capsys):
  right = {n: (run_dir / n).read_text() for n in ("config.gin", "operative_config.gin")}
  if content is None:
    (run_dir / name).unlink()
  else:
    (run_dir / name).write_bytes(content)
  RunDirectory(run_dir).restore()
  (line,) = capsys.readouterr().err.splitlines()
  assert name in line
  assert len(line) < 600
  without_head = [(run_dir / n).read_text().partition("\n")[2] for n in right]
  assert without_head == [text.partition("\n")[2] for text in right.values()]


def test_without_its_values_in_force_a_run_still_knows_its_learning_rate(run_dir, file):
  (run_dir / "operative_config.gin").unlink()
  (run_dir / "record.json").unlink()  # as runs made before there was one
  with pytest.raises(UserError, match=r"0.001 -> 0.5"):
    train.main([str(file), f"--run_dir={run_dir}", *SHORT, "--gin.LEARNING_RATE=0.5"])


def test_differences_of_a_run_go_by_the_trust_that_was_given(tmp_path, monkeypatch):
  """Without its operative values, the configuration is resolved again, and it names a module."""
  (tmp_path / "modules").mkdir()
  (tmp_path / "modules" / "rates.py").write_text("def rate():\n  return lambda step: 0.1\n")
  monkeypatch.syspath_prepend(tmp_path / "modules")
  lines = (
    "import rates\nfrom training import optimizer\noptimizer.AdamW.learning_rate = @rates.rate()\n"
  )
  run = RunDirectory(sent(tmp_path, lines))
  config = experiment.load(run.config_file)
  with pytest.raises(UserError, match="give --trust=rates"):
    run.differences(config)
  assert run.differences(config, Trust.of(["rates"])) == []


def test_without_a_record_the_checkpoint_is_the_authority(run_dir, capsys):
  (run_dir / "record.json").write_text("{}")
  window = window_of(run_dir)
  text = (run_dir / "config.gin").read_text()
  (run_dir / "config.gin").write_text(text.replace(f"WINDOW = {window}", "WINDOW = 7"))
  assert window_of(run_dir) == window
  assert "compared with checkpoint 2" in capsys.readouterr().err


def test_a_changed_run_is_not_put_back(run_dir, capsys):
  assert again(run_dir, "--gin.STEPS=3", "--resume=force") == 0
  capsys.readouterr()
  (run_dir / "checkpoints" / "3").rename(run_dir / "3")  # as if it was killed before it saved
  RunDirectory(run_dir).restore()
  assert not capsys.readouterr().err
  assert "STEPS = 3" in config_of(run_dir)


@pytest.mark.parametrize("content", [None, b"", b'{"training rows": "ab', b"[]", b"\xff"])
def test_data_that_is_lost_or_damaged_is_put_back(run_dir, content, capsys):
  right = json.loads((run_dir / "data.json").read_text())
  if content is None:
    (run_dir / "data.json").unlink()
  else:
    (run_dir / "data.json").write_bytes(content)
  assert again(run_dir) == 0
  assert "data.json was changed: " in capsys.readouterr().err
  assert json.loads((run_dir / "data.json").read_text()) == right


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"kind": "bytes"}', b'{"kind": "x"}'])
def test_a_tokenizer_that_is_damaged_is_one_line(run_dir, content):
  (run_dir / "vocabulary.json").write_bytes(content)
  with pytest.raises(UserError, match=r"vocabulary.json"):
    generate.main([f"--run_dir={run_dir}", "--max_tokens=1"])
  assert again(run_dir) == 0  # which writes it anew
  assert generate.main([f"--run_dir={run_dir}", "--max_tokens=1"]) == 0


def test_a_tokenizer_whose_model_is_missing_is_one_line(run_dir):
  described = {"kind": "sentencepiece", "size": 259, "extra_ids": 0, "sha256": "0"}
  (run_dir / "vocabulary.json").write_text(json.dumps(described))
  with pytest.raises(UserError, match=r"vocabulary.model|sentencepiece|vocabulary.json"):
    evaluate.main([f"--run_dir={run_dir}"])


@pytest.mark.parametrize("name", ["٣", "99999999999999999999"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_strangers_among_checkpoints_stop_nothing(run_dir, name, kind, capsys):
  stranger = run_dir / "checkpoints" / name
  stranger.write_text("") if kind == "file" else stranger.mkdir()
  before = read_metrics(run_dir / "metrics.jsonl")
  assert again(run_dir, "--gin.STEPS=3", "--resume=force") == 0
  assert (run_dir / "checkpoints" / "3").is_dir()
  assert read_metrics(run_dir / "metrics.jsonl")[: len(before)] == before
  assert generate.main([f"--run_dir={run_dir}", "--max_tokens=1", "--checkpoint=3"]) == 0


def test_a_file_in_place_of_the_checkpoints_is_one_line(run_dir):
  shutil.rmtree(run_dir / "checkpoints")
  (run_dir / "checkpoints").write_text("")
  before = (run_dir / "metrics.jsonl").read_bytes()
  with pytest.raises(Exception, match="is a file") as error:
    again(run_dir)
  assert isinstance(error.value, UserError)
  assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_checkpoints_that_vanished_are_told_and_no_metrics_are_lost(run_dir, capsys):
  every = "--gin.loop.LoopOptions.checkpoint_every=1"
  assert again(run_dir, "--gin.STEPS=4", every, "--resume=force") == 0
  shutil.rmtree(run_dir / "checkpoints")
  before = (run_dir / "metrics.jsonl").read_bytes()
  with pytest.raises(UserError, match=r"has no checkpoint, although .* has 4 steps.*force"):
    again(run_dir)
  assert (run_dir / "metrics.jsonl").read_bytes() == before
  assert again(run_dir, "--resume=force") == 0
  assert (run_dir / "metrics.1.jsonl").read_bytes() == before
  assert "metrics.1.jsonl" in capsys.readouterr().err


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(run_dir):
  shutil.rmtree(run_dir / "checkpoints")
  assert again(run_dir) == 0
  assert len(read_metrics(run_dir / "metrics.jsonl")) == len(
    read_metrics(run_dir / "metrics.1.jsonl")
  )


@pytest.mark.parametrize("damage", [b"\xff", b'{"step": "x"}\n', b"[]\n", b"\n\n"])
def test_metrics_with_bad_bytes_stop_nothing(run_dir, damage):
  file = run_dir / "metrics.jsonl"
  lines = file.read_bytes().splitlines(keepends=True)
  file.write_bytes(damage + b"".join(lines))
  assert again(run_dir, "--gin.STEPS=3", "--resume=force") == 0
  assert read_metrics(file)[-1]["step"] == 3


def test_a_metrics_file_that_was_cut_does_not_swallow_the_next_line(tmp_path):
  file = tmp_path / "metrics.jsonl"
  file.write_bytes(b'{"step": 1}\n{"step": 2')
  metrics = MetricsFile(file, 36)
  metrics.write({"step": 4})
  metrics.close()
  assert [record["step"] for record in read_metrics(file)] == [1, 4]
