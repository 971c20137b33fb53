"""Exit statuses for schedulers: do not start again after a mistake, do after a failure."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from base.errors import UserError
from experiment import foreign_files
from experiment.run_directory import RunDirectory
from launch import command, compare, evaluation_files, failures, output, sweep, train, vocabulary
from parallel.coordination import HostError
from training.checkpoint_reader import CheckpointError

ROOT = Path(command.__file__).parents[1]


def exit_status(monkeypatch, error):
  def fails(arguments):
    raise error

  monkeypatch.setenv("GLIBC_TUNABLES", "")
  monkeypatch.setattr(sys, "argv", ["train"])
  with pytest.raises(SystemExit) as left:
    command.run(fails)
  return left.value.code


@pytest.mark.parametrize(
  ("error", "status"),
  [
    (OSError(errno.ESTALE, "Stale file handle", "/shared/x"), 1),
    (OSError(errno.ETIMEDOUT, "Connection timed out", "/shared/x"), 1),
    (OSError(errno.EIO, "Input/output error", "/shared/x"), 1),
    (OSError(errno.ENOSPC, "No space left on device", "/shared/x"), 2),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 2),
    (PermissionError(errno.EACCES, "Permission denied", "x"), 2),
    (UserError("a mistake"), 2),
    (HostError("process 0 does not answer", may_pass=True), 1),
    (HostError("the processes differ"), 2),
    (CheckpointError("could not be read", may_pass=True), 1),
    (CheckpointError("of another model"), 2),
  ],
  ids=lambda value: str(value),
)
def test_what_may_pass_is_worth_another_start(monkeypatch, capsys, error, status):
  assert exit_status(monkeypatch, error) == status
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ")


def test_a_pipe_to_something_else_is_no_reader_that_has_gone(capsys):
  error = BrokenPipeError(errno.EPIPE, "Broken pipe")
  assert output.failure(error) is None
  assert failures.may_pass(error)
  program = (
    "import sys; from launch import output\ntry:\n  print('x' * 100000, flush=True)\n"
    "except OSError as e:\n  sys.exit(output.failure(e))"
  )
  done = subprocess.run(
    f'{sys.executable} -c "$PROGRAM" | true; exit ${{PIPESTATUS[0]}}',
    shell=True,
    executable="/bin/bash",
    env=os.environ | {"PROGRAM": program, "PYTHONPATH": str(ROOT)},
    capture_output=True,
  )
  assert done.returncode == output.READER_GONE, done.stderr


def test_a_run_directory_that_is_none_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  (tmp_path / "link").symlink_to(tmp_path / "nothing")
  (tmp_path / "run" / "config.gin").mkdir(parents=True)
  for name, says in (("file", "is a file"), ("link", "is a broken link"), ("run", "is a folder")):
    with pytest.raises(UserError, match=says):
      train.main(["gin/runs/griffin_quickstart.gin", f"--run_dir={tmp_path / name}"])
  RunDirectory(tmp_path / "new").require_place()
  assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.gin", "file", "link", "run"]


@pytest.mark.parametrize(
  ("command", "run_file", "option"),
  [
    (train, "runs/griffin_quickstart.gin", "--run_dir"),
    (compare, "compare/quick.gin", "--output"),
    (sweep, "runs/griffin_quickstart.gin", "--output"),
  ],
)
def test_a_folder_with_files_of_somebody_else_is_not_written(tmp_path, command, run_file, option):
  book, log = tmp_path / "book.txt", tmp_path / "slurm-1.out"
  book.write_text("A book.")
  log.write_text("The scheduler's.")
  over = ("--over", "SEED=0,1") if command is sweep else ()
  with pytest.raises(UserError, match=rf"such as book\.txt\. Name a new folder: {option}=.*new"):
    command.main([f"gin/{run_file}", f"{option}={tmp_path}", *over])
  assert sorted(tmp_path.iterdir()) == [book, log]
  book.unlink()
  foreign_files.require_none(tmp_path, option, ())


@pytest.mark.parametrize("executable", ["", "/nowhere/python"])
def test_a_python_that_cannot_start_itself_again_goes_on(monkeypatch, executable):
  monkeypatch.setenv("GLIBC_TUNABLES", "")
  monkeypatch.delenv("GLIBC_TUNABLES")
  monkeypatch.setattr(sys, "executable", executable)
  monkeypatch.setattr(sys, "argv", ["train"])
  with pytest.raises(SystemExit) as left:
    command.run(lambda arguments: 0)
  assert left.value.code == 0


def test_in_a_folder_that_is_not_writable_nothing_is_cached(monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  monkeypatch.setenv("GLIBC_TUNABLES", "")
  monkeypatch.setattr(sys, "argv", ["train"])
  for writable in (False, True):
    monkeypatch.setattr(command.os, "access", lambda path, mode, answer=writable: answer)
    with pytest.raises(SystemExit):
      command.run(lambda arguments: 0)
    assert ("JAX_COMPILATION_CACHE_DIR" in os.environ) == writable


def test_figures_of_a_run_that_can_only_be_read_are_not_lost(tmp_path, monkeypatch, capsys):
  run = RunDirectory(tmp_path)
  assert evaluation_files.keep(run, "8-text", {"loss": 1.0}) == tmp_path / "evaluations/8-text.json"

  def fails(number):
    def replace(path, contents):
      raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(evaluation_files.small_files, "replace", replace)

  fails(errno.EROFS)
  assert evaluation_files.keep(run, "8-text", {"loss": 1.0}) is None
  assert "warning: the figures are not stored: " in capsys.readouterr().err
  fails(errno.ENOSPC)
  with pytest.raises(OSError, match="No space left"):
    evaluation_files.keep(run, "8-text", {"loss": 1.0})


def test_a_folder_that_a_killed_start_left_is_taken(tmp_path):
  (tmp_path / ".owner.json").write_text("")
  (tmp_path / "record.json.123.new").write_text("")
  RunDirectory(tmp_path).require_place()


def test_an_input_that_is_no_path_is_named(capsys):
  with pytest.raises(SystemExit) as left:
    vocabulary.main(["--input=", "--output=x.model"])
  assert left.value.code == 2
  assert "argument --input" in capsys.readouterr().err
