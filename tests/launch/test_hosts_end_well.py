"""Whatever happens to one of two hosts, within a minute both have ended, and say which it was and
why.

Each attack is on real processes that train; tests/launch/test_hosts_start_well.py attacks those
that start. They share a run directory and compiled programs, so that a life is little more than the
start of Python and JAX.
"""

from __future__ import annotations

import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

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


def under_way(
  folder: Path, run: str, ready: bool = True, port: int | None = None, forked: bool = False
):
  """A run of two hosts that would not end; not forked where the test stops one (SIGSTOP)."""
  resumed = (*hosts.ENDLESS, "--resume=force")
  found = hosts.start(folder, run, 2, *resumed, port=port, forked=forked)
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
  zero, one = under_way(folder, begun, forked=True)
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


def test_all_fall_back_where_one_host_cannot_read(folder, begun):
  run = ["tests.launch.failing_reads", "7", str(folder / "run.gin"), f"--run_dir={folder / begun}"]
  both = hosts.start(folder, begun, 2, command=run)
  outputs = hosts.finish(both)
  assert f"skipped checkpoint 7: process 1 ({HERE}): ValueError: DATA_LOSS" in outputs[0]
  assert "continuing at step 5" in outputs[0]
  assert (folder / begun / "damaged_checkpoints" / "7").is_dir()
  assert (folder / begun / "checkpoints" / "7").is_dir()


def test_a_second_job_at_the_port_of_another_leaves_it_alone(folder, begun):
  port = hosts.free_port()
  first = under_way(folder, begun, port=port, forked=True)
  outputs = hosts.end(hosts.start(folder, "second", 2, "--join_seconds=20", port=port))
  assert f"cannot listen on port {port}: Address already in use" in outputs[0]
  assert f"process 0 does not answer at localhost:{port}: another program" in outputs[1]
  first[1].send_signal(signal.SIGTERM)
  outputs = hosts.finish(first, statuses=(command.PREEMPTED,))
  assert "stopped at step" in outputs[0]
