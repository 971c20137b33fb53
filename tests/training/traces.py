"""Tests that begin a trace; `test_profiler` runs them in a process of their own."""

import os
import signal

import jax

from launch import train
from tests import small_run
from training import profiler


def traced_steps(run_dir):
  """The steps of each trace, in the order of time."""
  found = []
  for file in sorted(run_dir.glob("profile/plugins/profile/*/*.xplane.pb")):
    events = [
      event
      for plane in jax.profiler.ProfileData.from_file(str(file)).planes
      for one in plane.lines
      for event in one.events
      if event.name == "train"
    ]
    found.append([dict(event.stats)["step_num"] for event in events])
  return found


def test_the_named_steps_are_traced(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  small_run.write("run.gin")
  assert train.main(["run.gin", "--run_dir=a", "--profile=3:4", "--gin.STEPS=5"]) == 0
  assert traced_steps(tmp_path / "a") == [[3, 4]]
  assert "a profile is in " in capsys.readouterr().err


def test_a_signal_traces_the_next_steps(tmp_path):
  said = []
  with profiler.Profiler(tmp_path, say=said.append) as one:
    for number in range(1, 12):
      if number == 3:
        os.kill(os.getpid(), signal.SIGUSR2)
      if one.begins(number):
        one.begin()
      with one.step(number):
        jax.block_until_ready(jax.numpy.zeros(3) + number)
      if one.ends(number):
        one.end()
  assert traced_steps(tmp_path) == [list(range(3, 3 + profiler.STEPS))]
  assert len(said) == 1


def test_a_trace_that_cannot_be_written_ends_nothing(tmp_path):
  (tmp_path / profiler.FOLDER).write_text("no folder")
  said = []
  with profiler.Profiler(tmp_path, range(1, 2), said.append) as one:
    assert one.begins(1)
    one.begin()
    with one.step(1):
      pass
    if one.ends(1):
      one.end()
  assert [line[:19] for line in said] == ["warning: no profile"]
