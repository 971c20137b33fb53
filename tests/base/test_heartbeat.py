"""A long call says that it still runs; a short one says nothing."""

from __future__ import annotations

import re
import threading

import pytest

from base import heartbeat


def test_a_long_call_says_that_it_runs_and_stops_saying_so():
  lines, twice = [], threading.Event()

  def tell(line):
    lines.append(line)
    if len(lines) == 2:
      twice.set()

  with heartbeat.telling("compiling", tell, seconds=0.001):
    assert twice.wait(60)
  told = len(lines)
  assert not [t for t in threading.enumerate() if t.name == "heartbeat"]
  assert len(lines) == told
  assert all(re.fullmatch(r"compiling: 0 s so far", line) for line in lines)


def test_a_short_call_says_nothing_and_a_failure_ends_it():
  lines = []
  with pytest.raises(ValueError, match="x"), heartbeat.telling("compiling", lines.append):
    raise ValueError("x")
  assert lines == []
