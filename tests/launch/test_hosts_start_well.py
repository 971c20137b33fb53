"""Hosts that cannot start together end within a minute, and say which it was and why.

Each attack is on real processes. tests/launch/test_hosts_end_well.py attacks those that train.
"""

from __future__ import annotations

import re
import shutil
import socket
import time

import pytest

from experiment import directory_owner
from tests.launch import hosts

HERE = socket.gethostname()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Text and a run file."""
  folder = tmp_path_factory.mktemp("hosts")
  hosts.write_run(folder, steps=4)
  return folder


@pytest.fixture
def own_folders(folder, tmp_path):
  """A folder of each host in which /proc/self/cwd, the same path for both, is another one."""
  both = [tmp_path / "zero", tmp_path / "one"]
  for own in both:
    shutil.copytree(folder, own, ignore=shutil.ignore_patterns("cache"))
  for own in both:
    (own / "run.gin").write_text(hosts.RUN.format(folder="/proc/self/cwd", steps=4))
  return both


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


@pytest.fixture(scope="module")
def waiting(folder):
  """Of four runs whose hosts wait in vain, at once: statuses, what they printed, and the port."""
  ports = {run: hosts.free_port() for run in ("no_coordinator", "no_host", "twice")}
  with socket.create_server(("localhost", 0)) as other:
    ports["in_use"] = other.getsockname()[1]

    def start(run: str, seconds: int, count: int, only: list[int]):
      joining = f"--join_seconds={seconds}"
      return hosts.start(folder, "alone", count, joining, port=ports[run], only=only)

    started = {
      "no_coordinator": start("no_coordinator", 7, 2, [1]),
      "no_host": start("no_host", 7, 2, [0]),
      "in_use": start("in_use", 5, 2, [0, 1]),
      "twice": [start("twice", 20, 3, [number])[0] for number in (1, 1, 0)],
    }
    outputs = {run: hosts.end(processes) for run, processes in started.items()}
  statuses = {run: [p.returncode for p in processes] for run, processes in started.items()}
  return {run: (statuses[run], outputs[run], ports[run]) for run in started}


def test_a_coordinator_that_never_comes_is_told(waiting):
  statuses, (output,), port = waiting["no_coordinator"]
  assert f"waiting for process 0 of 2 at localhost:{port} (5 s)" in output
  # It may come at another start.
  assert statuses == [1]
  assert (
    f"error: could not join the other processes: process 0 does not answer at localhost:{port}"
    in (output)
  )


def test_a_host_that_never_comes_is_told(waiting):
  statuses, (output,), _ = waiting["no_host"]
  assert statuses == [1]
  assert re.search(r"waiting for process 1 of 2 at localhost:\d+ \(5 s\)", output)
  assert "process 1 of 2 did not join process 0 at localhost:" in output


def test_a_port_in_use_is_told(waiting):
  statuses, outputs, port = waiting["in_use"]
  assert statuses == [1, 1], outputs
  assert f"process 0 ({HERE}) cannot listen on port {port}: Address already in use" in outputs[0]
  assert f"process 0 does not answer at localhost:{port}: another program" in outputs[1]


def test_two_processes_of_one_number_are_told(waiting):
  _, outputs, _ = waiting["twice"]
  assert any("process 1 has joined already" in output for output in outputs[:2])
  # Process 1 has given up, too, where process 0 started seconds later.
  assert re.search("process(es 1,)? 2 of 3 did not join process 0", outputs[2]), outputs[2]


def test_host_0_that_is_killed_while_they_start_is_named(folder):
  both = hosts.start(folder, "starting", 2)
  # Joined and agreed, long before a step.
  while not (folder / "starting" / directory_owner.LOCK_FILE).exists():
    time.sleep(0.02)
  both[0].kill()
  _, output = hosts.end(both)
  assert both[1].returncode == 1, output
  assert output.count(f"error: process 0 ({HERE}) does not answer any more") == 1
