"""Whatever happens to one of two hosts, within a minute both have ended, and say which it was and
why.

Each attack is on real processes. A row of them shares a run directory and compiled programs, so
that a life is little more than the start of Python and JAX.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

from experiment import directory_owner
from launch import command
from tests.launch import hosts

HERE = socket.gethostname()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run that has stopped at a checkpoint: it is copied and continued."""
  folder = tmp_path_factory.mktemp("hosts")
  hosts.write_run(folder, steps=7)
  hosts.finish(hosts.start(folder, "begun", 2))
  return folder


@pytest.fixture
def begun(folder, request):
  """The name of a copy of the run that was begun."""
  name = request.node.name
  shutil.copytree(folder / "begun", folder / name)
  return name


def under_way(folder: Path, run: str, ready: bool = True, port: int | None = None):
  found = hosts.start(folder, run, 2, *hosts.ENDLESS, "--resume=force", port=port)
  if ready:
    hosts.wait_for_step(folder, run, 10, found)
  return found


@pytest.fixture(scope="module")
def silent(folder):
  """Three runs in each of which one host falls silent at once, until the other has ended: they wait
  together.
  """
  attacks = {
    "killed": (1, signal.SIGKILL),
    "stopped": (1, signal.SIGSTOP),
    "first_stopped": (0, signal.SIGSTOP),
  }
  for run in attacks:
    shutil.copytree(folder / "begun", folder / run)
  runs = {run: under_way(folder, run, ready=False) for run in attacks}
  for run, both in runs.items():
    hosts.wait_for_step(folder, run, 10, both)
  for run, (attacked, number) in attacks.items():
    runs[run][attacked].send_signal(number)
  others = [runs[run][1 - attacked] for run, (attacked, _) in attacks.items()]
  outputs = dict(zip(attacks, hosts.end(others), strict=True))
  for both in runs.values():
    for process in both:
      process.send_signal(signal.SIGCONT)
  after = {run: hosts.end([runs[run][attacks[run][0]]])[0] for run in attacks}
  statuses = {run: [process.returncode for process in both] for run, both in runs.items()}
  return outputs, after, statuses


def test_a_host_that_is_killed_is_named(silent):
  outputs, _, statuses = silent
  assert statuses["killed"] == [1, -signal.SIGKILL]
  line = f"error: process 1 ({HERE}) ended: it has been silent for 40 s"
  assert outputs["killed"].count(line) == 1


def test_a_host_that_is_stopped_is_named_and_ends_when_it_goes_on(silent):
  outputs, after, statuses = silent
  assert statuses["stopped"] == [1, 1], after
  assert f"error: process 1 ({HERE}) ended: it has been silent for 40 s" in outputs["stopped"]
  assert f"error: process 1 ({HERE}) was stopped for " in after["stopped"]


def test_host_0_that_is_stopped_is_named_and_ends_when_it_goes_on(silent):
  outputs, after, statuses = silent
  assert statuses["first_stopped"] == [1, 1], after
  line = f"error: process 0 ({HERE}) does not answer any more: silent for 40 s"
  assert line in outputs["first_stopped"]
  assert f"error: process 0 ({HERE}) was stopped for " in after["first_stopped"]


def test_host_0_that_is_killed_is_named(folder, begun):
  zero, one = under_way(folder, begun)
  zero.kill()
  _, output = hosts.end([zero, one])
  assert one.returncode == 1, output
  assert f"error: process 0 ({HERE}) does not answer any more" in output


@pytest.mark.parametrize(
  ("number", "status"),
  [(signal.SIGINT, command.INTERRUPTED), (signal.SIGTERM, command.PREEMPTED)],
)
def test_a_signal_to_one_host_has_both_save_and_stop(folder, begun, number, status):
  both = under_way(folder, begun)
  # A short stop of the other is none of its business.
  both[0].send_signal(signal.SIGSTOP)
  time.sleep(3)
  both[0].send_signal(signal.SIGCONT)
  both[1].send_signal(number)
  outputs = hosts.end(both)
  assert [process.returncode for process in both] == [status] * 2, outputs
  assert "stopped at step" in outputs[0]
  step = outputs[0].split("stopped at step ")[1].split()[0]
  assert (folder / begun / "checkpoints" / step).is_dir()


@pytest.fixture
def own_folders(folder, tmp_path):
  """A folder of each host in which /proc/self/cwd, the same path for both, is another one."""
  both = [tmp_path / "zero", tmp_path / "one"]
  for own in both:
    shutil.copytree(folder, own, ignore=shutil.ignore_patterns("begun", "test*", "compiled*"))
  for own in both:
    (own / "run.gin").write_text(hosts.RUN.format(folder="/proc/self/cwd", steps=4))
  return both


def test_all_fall_back_where_one_host_cannot_read(folder, begun):
  run = ["tests.launch.failing_reads", "7", str(folder / "run.gin"), f"--run_dir={folder / begun}"]
  both = hosts.start(folder, begun, 2, command=run)
  outputs = hosts.finish(both)
  assert f"skipped checkpoint 7: process 1 ({HERE}): ValueError: DATA_LOSS" in outputs[0]
  assert "continuing at step 5" in outputs[0]
  assert (folder / begun / "damaged_checkpoints" / "7").is_dir()
  assert (folder / begun / "checkpoints" / "7").is_dir()


def test_a_text_that_one_host_lacks_ends_the_other_with_its_reason(folder, own_folders):
  for file in own_folders[1].glob("*.txt"):
    file.unlink()
  run = ["launch.train", "/proc/self/cwd/run.gin", f"--run_dir={folder / 'lacking'}"]
  both = hosts.start(folder, "lacking", 2, command=run, folders=own_folders)
  outputs = hosts.end(both)
  assert [process.returncode for process in both] == [2, 2], outputs
  assert f"error: process 1 ({HERE}) ended: " in outputs[0]
  assert "*.txt" in outputs[0].split("ended: ")[1]
  assert not (folder / "lacking" / "config.gin").exists()


def test_hosts_with_other_text_do_not_train_together(folder, own_folders):
  (own_folders[1] / "7.txt").write_text("Another text says hello too.\n")
  run = ["launch.train", "/proc/self/cwd/run.gin", f"--run_dir={folder / 'other'}"]
  both = hosts.start(folder, "other", 2, command=run, folders=own_folders)
  outputs = hosts.end(both)
  assert [process.returncode for process in both] == [2, 2], outputs
  for output in outputs:
    assert output.count(f"disagree about the rows: process 0 ({HERE}) has") == 1
  assert not (folder / "other" / "config.gin").exists()


def test_directories_that_are_not_shared_are_told_before_training(folder):
  both = hosts.start(folder, "mine", 2, last=[f"--run_dir={folder / 'elsewhere' / 'run'}"])
  (folder / "elsewhere").mkdir(exist_ok=True)
  outputs = hosts.end(both)
  assert [process.returncode for process in both] == [2, 2], outputs
  for output in outputs:
    assert f"is not shared by all hosts: process 1 ({HERE}) does not see" in output
  assert not (folder / "mine" / "config.gin").exists()
  assert not any((folder / "elsewhere").iterdir())


def test_a_coordinator_that_never_comes_is_told(folder):
  port = hosts.free_port()
  (one,) = hosts.start(folder, "alone", 2, "--join_seconds=7", port=port, only=[1])
  (output,) = hosts.end([one])
  assert f"waiting for process 0 of 2 at localhost:{port} (5 s)" in output
  # It may come at another start.
  assert one.returncode == 1
  assert (
    f"error: could not join the other processes: process 0 does not answer at localhost:{port}"
    in (output)
  )


def test_a_host_that_never_comes_is_told(folder):
  (zero,) = hosts.start(folder, "alone", 2, "--join_seconds=7", only=[0])
  (output,) = hosts.end([zero])
  assert zero.returncode == 1
  assert re.search(r"waiting for process 1 of 2 at localhost:\d+ \(5 s\)", output)
  assert "process 1 of 2 did not join process 0 at localhost:" in output


def test_a_port_in_use_is_told(folder):
  with socket.create_server(("localhost", 0)) as other:
    port = other.getsockname()[1]
    both = hosts.start(folder, "alone", 2, "--join_seconds=5", port=port)
    outputs = hosts.end(both)
  assert [process.returncode for process in both] == [1, 1], outputs
  assert f"process 0 ({HERE}) cannot listen on port {port}: Address already in use" in outputs[0]
  assert f"process 0 does not answer at localhost:{port}: another program" in outputs[1]


def test_host_0_that_is_killed_while_they_start_is_named(folder):
  both = hosts.start(folder, "starting", 2)
  # Joined and agreed, long before a step.
  while not (folder / "starting" / directory_owner.LOCK_FILE).exists():
    time.sleep(0.02)
  both[0].kill()
  _, output = hosts.end(both)
  assert both[1].returncode == 1, output
  assert output.count(f"error: process 0 ({HERE}) does not answer any more") == 1


def test_a_second_job_at_the_port_of_another_leaves_it_alone(folder, begun):
  port = hosts.free_port()
  first = under_way(folder, begun, port=port)
  outputs = hosts.end(hosts.start(folder, "second", 2, "--join_seconds=20", port=port))
  assert f"cannot listen on port {port}: Address already in use" in outputs[0]
  assert f"process 0 does not answer at localhost:{port}: another program" in outputs[1]
  first[1].send_signal(signal.SIGTERM)
  outputs = hosts.finish(first, statuses=(command.PREEMPTED,))
  assert "stopped at step" in outputs[0]


def test_two_processes_of_one_number_are_told(tmp_path):
  port = hosts.free_port()
  started = [
    hosts.start(tmp_path, "twice", 3, "--join_seconds=30", port=port, only=[1])[0] for _ in "ab"
  ]
  started += hosts.start(tmp_path, "twice", 3, "--join_seconds=30", port=port, only=[0])
  outputs = hosts.end(started)
  assert any("process 1 has joined already" in output for output in outputs[:2])
  assert "process 2 of 3 did not join process 0" in outputs[2]
