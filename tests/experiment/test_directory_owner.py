"""A directory that a command writes belongs to one process; a dead one's is taken over at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from base.errors import UserError
from conversion import target_folder
from experiment import directory_owner, lock_owner
from experiment.directory_owner import LOCK_FILE, owned, owned_by_job
from launch import compare, train
from training.checkpoint import Checkpoints

ROOT = Path(directory_owner.__file__).parents[1]
HOLD = """
import sys
from pathlib import Path
from experiment import directory_owner
directory_owner.take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(directory_owner, "DYING_SECONDS", 0.3)


@pytest.fixture
def other(tmp_path):
  """A process that holds `tmp_path / 'run'`."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path / "run")],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.communicate()


def change(directory: Path, **values) -> None:
  lock = directory / LOCK_FILE
  lock.write_text(json.dumps(json.loads(lock.read_text()) | values))


def test_the_second_is_told_who_holds_it_since_when_and_what_to_do(tmp_path, other):
  with (
    pytest.raises(UserError, match=rf"process {other.pid} on .* since 20") as error,
    owned(tmp_path / "run"),
  ):
    pass
  assert "the same command then continues" in str(error.value)
  assert len(str(error.value)) < 500
  assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]


def test_a_killed_owner_is_followed_at_once(tmp_path, other, monkeypatch):
  monkeypatch.setattr(directory_owner, "DYING_SECONDS", 60)
  other.kill()
  with owned(tmp_path / "run"):  # not even waited for: it is a zombie
    assert directory_owner.holder(tmp_path / "run").pid == os.getpid()
  assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_a_process_id_that_is_used_again_is_another_process(tmp_path, other):
  change(tmp_path / "run", process_start="1")
  with owned(tmp_path / "run"):
    pass


def test_a_silent_owner_elsewhere_is_followed_and_a_live_one_is_not(tmp_path, monkeypatch):
  monkeypatch.setattr(directory_owner, "BEAT_SECONDS", 0.05)
  told = []
  with owned(tmp_path):
    change(tmp_path, machine="another", host="elsewhere")
    with pytest.raises(UserError, match="on elsewhere since"), owned(tmp_path, told.append):
      pass
    assert "waiting up to 90 s for its heartbeat" in told[0]
  (tmp_path / LOCK_FILE).write_text(
    json.dumps(
      dataclasses.asdict(
        dataclasses.replace(lock_owner.this_process(), machine="another", host="elsewhere")
      )
    )
  )
  old = (tmp_path / LOCK_FILE).stat().st_mtime - directory_owner.DEAD_SECONDS - 1
  os.utime(tmp_path / LOCK_FILE, (old, old))
  with owned(tmp_path):
    pass


def test_a_lock_file_that_says_nothing_is_followed_once_it_is_old(tmp_path):
  (tmp_path / LOCK_FILE).write_text("")
  os.utime(tmp_path / LOCK_FILE, (1e9, 1e9))
  with owned(tmp_path):
    pass


def test_of_many_that_follow_a_dead_owner_one_alone_holds_it(tmp_path, other):
  other.kill()
  other.wait()
  held, refused = [], []
  start = threading.Barrier(12)

  def take():
    start.wait()
    try:
      held.append(directory_owner.take(tmp_path / "run"))
    except UserError as error:
      refused.append(error)

  threads = [threading.Thread(target=take) for _ in range(12)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(held) == 1
  assert len(refused) == 11
  held[0].release()
  assert list((tmp_path / "run").iterdir()) == []


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
  def link(*_):
    raise PermissionError(1, "Operation not permitted")

  monkeypatch.setattr(os, "link", link)
  with owned(tmp_path), pytest.raises(UserError, match="in use"), owned(tmp_path):
    pass
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [train, compare])
def test_a_command_does_not_touch_what_another_process_writes(tmp_path, other, command):
  file, option = ("runs/griffin_quickstart", "--run_dir=")
  if command is compare:
    file, option = ("compare/quick", "--output=")
  arguments = [f"gin/{file}.gin", f"{option}{tmp_path / 'run'}"]
  (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 3}\n')
  with pytest.raises(UserError, match=f"process {other.pid} on"):
    command.main(arguments)
  assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 3}\n'
  assert {path.name for path in (tmp_path / "run").iterdir()} == {LOCK_FILE, "metrics.jsonl"}


def test_of_two_that_make_one_target_the_first_to_end_wins_and_it_is_whole(tmp_path):
  target = tmp_path / "target"

  def make_two():
    with target_folder.appearing(target) as first:
      (first / "file").write_text("first")
      with target_folder.appearing(target) as second:
        (second / "file").write_text("second")
        assert first != second
        assert first.is_dir()

  with pytest.raises(UserError, match="created by another process"):
    make_two()
  assert (target / "file").read_text() == "second"
  assert [path.name for path in tmp_path.iterdir()] == ["target"]
  assert [path.name for path in target.iterdir()] == ["file"]


def test_what_a_killed_conversion_left_is_removed_by_the_next(tmp_path, other):
  (tmp_path / "run").rename(tmp_path / ".target.partial-x")
  with target_folder.appearing(tmp_path / "target"):
    pass
  assert (tmp_path / ".target.partial-x").is_dir()
  (tmp_path / "target").rmdir()
  other.kill()
  other.wait()
  with target_folder.appearing(tmp_path / "target"):
    pass
  assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_stopped_process_of_this_machine_keeps_its_directory(tmp_path, other):
  other.send_signal(signal.SIGSTOP)
  lock = tmp_path / "run" / LOCK_FILE
  old = lock.stat().st_mtime - 100 * directory_owner.DEAD_SECONDS
  os.utime(lock, (old, old))
  assert not directory_owner.is_abandoned(tmp_path / "run")
  with pytest.raises(UserError, match="in use"), owned(tmp_path / "run"):
    pass


def test_a_lock_that_was_removed_is_lost(tmp_path):
  quick = HOLD.replace(
    "directory_owner.take", "directory_owner.BEAT_SECONDS = 0.05\ndirectory_owner.take"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", quick, str(tmp_path / "run")],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "held\n"
  (tmp_path / "run" / LOCK_FILE).unlink()
  assert process.wait(30) == 2
  assert "its lock file was removed" in process.stderr.read()
  process.stdin.close()
  assert not list((tmp_path / "run").iterdir())


WRITE = """
import sys, time
from pathlib import Path
from experiment import directory_owner, lock_owner
from training.metrics import MetricsFile
lock_owner.machine = lambda: sys.argv[2]  # as on a host of that name
directory_owner.BEAT_SECONDS = 3600.0  # the heartbeat sees nothing in time
directory_owner.DEAD_SECONDS = 0.5
folder = Path(sys.argv[1])
with directory_owner.owned_by_job(folder) as require_mine:
  metrics = MetricsFile(folder / "metrics.jsonl", before_writing=require_mine)
  print("held", flush=True)
  for step in range(10**9):
    metrics.write({"step": step, "by": sys.argv[2]})
    time.sleep(0.01)
    if (folder / "end").exists():
      break
"""


def test_a_stopped_process_whose_directory_was_taken_writes_nothing_more(tmp_path):
  def start(name):
    process = subprocess.Popen(
      [sys.executable, "-c", WRITE, str(tmp_path / "run"), name],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process

  first = start("first")
  while not (tmp_path / "run" / "metrics.jsonl").stat().st_size:
    time.sleep(0.01)
  first.send_signal(signal.SIGSTOP)
  os.utime(tmp_path / "run" / LOCK_FILE, (1e9, 1e9))  # as silent as that
  second = start("second")
  try:
    first.send_signal(signal.SIGCONT)
    _, told = first.communicate(timeout=60)
    assert first.returncode == 2
    (line,) = told.splitlines()
    assert f"now belongs to process {second.pid}" in line
    assert len(line) < 500 + len(str(tmp_path))
    (tmp_path / "run" / "end").touch()
    second.communicate(timeout=60)
    assert second.returncode == 0
  finally:
    first.kill()
    second.kill()
  records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
  by = [record["by"] for record in records]
  assert by == sorted(by)
  assert set(by) == {"first", "second"}


def test_who_lost_a_directory_saves_no_checkpoint(tmp_path, monkeypatch):
  class Ended(BaseException):
    pass

  def end(status):
    raise Ended(status)

  monkeypatch.setattr(os, "_exit", end)
  with contextlib.suppress(Ended), owned_by_job(tmp_path) as require_mine:
    change(tmp_path, token="another")
    checkpoints = Checkpoints(tmp_path, before_writing=require_mine)
    with pytest.raises(Ended):
      checkpoints.save(SimpleNamespace(step=3), {})
  assert not (tmp_path / "checkpoints").exists()


def test_a_remover_that_died_is_followed(tmp_path, other):
  other.kill()
  other.wait()
  lock = tmp_path / "run" / LOCK_FILE
  dead = directory_owner.holder(tmp_path / "run")
  remover = dataclasses.replace(dead, token="r" * 32)
  lock.with_name(f"{LOCK_FILE}.dead.{dead.token}").write_text(remover.as_json())
  with owned(tmp_path / "run"):
    pass
  assert list((tmp_path / "run").iterdir()) == []
