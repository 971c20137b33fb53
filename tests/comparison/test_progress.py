"""The remaining time of a comparison, from the times of its results."""

from __future__ import annotations

import io

import pytest

from comparison import progress as comparison_progress
from comparison.progress import ComparisonProgress, PlannedResult


class Terminal(io.StringIO):
  """A stream that shows lines as they are rewritten."""

  def isatty(self):
    """Returns True, as for a terminal."""
    return True


@pytest.fixture
def clock(monkeypatch):
  """A clock that a test advances."""
  now = [100.0]
  monkeypatch.setattr(comparison_progress.time, "monotonic", lambda: now[0])

  def wait(seconds):
    now[0] += seconds

  return wait


def progress(stream, *results):
  result = ComparisonProgress(stream)
  result.plan(results)
  return result


def test_time_left_follows_from_costs_and_from_what_results_took(clock):
  stream = io.StringIO()
  told = progress(
    stream,
    PlannedResult("scaling", "small", "training", 1.0),
    PlannedResult("scaling", "large", "training", 10.0),
    PlannedResult("context", "large", "training", 0.0),
    PlannedResult("speed", "a", "speed", 1.0),
  )
  assert told.eta() == "ETA 0:00 + 4 not yet timed"
  told.on_result("scaling", "small", None)
  clock(6.0)
  told.on_result("scaling", "small", 6.0)
  # Ten times the operations: a minute. The third result's run is the second's.
  assert told.eta() == "ETA 1:00 + 1 not yet timed"
  assert stream.getvalue().splitlines() == [
    "[1/4] scaling: small", "[1/4] scaling: small  6.0 s  ETA 1:00 + 1 not yet timed"
  ]  # fmt: skip
  told.on_result("speed", "a", 2.0)
  told.on_result("scaling", "large", 60.0)
  told.on_result("context", "large", 1.0)
  assert told.eta() == "done"


def test_kept_results_count_as_done_and_time_the_others(clock):
  told = progress(
    io.StringIO(),
    PlannedResult("speed", "a", "speed", 1.0, 30.0),
    PlannedResult("speed", "b", "speed", 2.0),
  )
  assert told.eta() == "ETA 1:00"


def test_steps_of_a_training_refine_the_estimate(clock):
  stream = Terminal()
  told = progress(
    stream,
    PlannedResult("scaling", "a", "training", 1.0),
    PlannedResult("scaling", "b", "training", 1.0),
  )
  told.expect_steps(100)
  told.on_result("scaling", "a", None)
  clock(10.0)
  told.show(25, {"loss": 2.5})
  line = stream.getvalue().split("\r")[-1]
  assert line.startswith("[1/2] scaling: a  step 25/100  loss 2.5  ETA 0:30 + 1 not yet timed")


def test_the_next_result_of_a_group_is_expected_to_take_what_the_last_took(clock):
  told = progress(
    io.StringIO(), PlannedResult("s", "a", "s", 1.0, 20.0), PlannedResult("s", "b", "s", 1.0)
  )
  told.on_result("s", "b", None)
  clock(15.0)
  assert told.eta() == "ETA 0:05"
  clock(100.0)
  assert told.eta() == "ETA 0:00"


def test_compilation_is_not_scaled_to_longer_trainings(clock):
  told = progress(
    io.StringIO(),
    PlannedResult("scaling", "small", "training", 1.0),
    PlannedResult("scaling", "large", "training", 100.0),
  )
  told.expect_steps(10)
  told.on_result("scaling", "small", None)
  clock(30.0)  # Compiles, and takes the first step.
  told.started(1)
  clock(9.0)
  told.show(10, {"loss": 2.5})
  told.on_result("scaling", "small", 40.0)
  # 30 s to compile again, and 100 times the 10 s of 10 steps.
  assert told.eta() == "ETA 17:10"
  told.on_result("scaling", "large", None)
  clock(30.0)
  told.started(1)
  clock(10.0)
  told.show(2, {"loss": 2.5})
  assert told.eta() == "ETA 1:20"


def test_a_log_has_a_line_of_a_long_training_now_and_then(clock):
  stream = io.StringIO()
  told = progress(stream, PlannedResult("scaling", "large", "training", 10.0))
  told.on_result("scaling", "large", None)
  told.expect_steps(100)
  for step in range(1, 41):
    clock(1.0)
    told.show(step, {"loss": 2.5, "tokens/s": 24730.25})
  first, *lines = stream.getvalue().splitlines()
  assert first == "[1/1] scaling: large"
  assert all("  tokens/s 24,730  " in line for line in lines)
  assert [line.partition("  loss")[0] for line in lines] == [
    "[1/1] scaling: large  step 15/100", "[1/1] scaling: large  step 30/100"
  ]  # fmt: skip
