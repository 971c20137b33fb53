"""No tracker can stop a run or slow it down, whatever it does and whenever."""

import dataclasses
import threading
import time
from pathlib import Path

import pytest

from base.errors import UserError
from training import tracking
from training.tracking import Tracking


@dataclasses.dataclass
class Remembers:
  """A tracker that a user defines; it fails as often as it is told to."""

  failures: int = 0
  at_open: bool = False
  error: type[BaseException] = ConnectionError

  def __post_init__(self):
    self.calls = []

  def open(self, run_dir, step):
    self._fail(self.at_open)
    self.calls.append(("open", Path(run_dir).name, step))
    return self

  def _fail(self, now=True):
    if now and self.failures:
      self.failures -= 1
      raise self.error("the server is away")

  def write(self, step, values):
    self._fail(not self.at_open)
    self.calls.append((step, values))

  def samples(self, step, texts):
    self.calls.append(("samples", step, texts))

  def close(self):
    self.calls.append("close")


@pytest.fixture
def said(monkeypatch):
  monkeypatch.setattr(tracking, "PAUSES", (0.01, 0.01))
  return []


def track(tmp_path, said, *writers, lines=3):
  with Tracking() as run:
    run.open(writers, tmp_path, 0, {"STEPS": 3}, said.append)
    for step in range(1, lines + 1):
      run.write(step, {"loss": 1.0})
      time.sleep(0.05)  # a step
    run.samples(lines, {"a": "b"})


WRITTEN = [(step, {"loss": 1.0}) for step in (1, 2, 3)]


def test_calls_come_in_order_and_only_those_that_a_writer_has(tmp_path, said):
  writer = Remembers()
  track(tmp_path, said, writer)
  end = [("samples", 3, {"a": "b"}), "close"]
  assert writer.calls == [("open", tmp_path.name, 0), *WRITTEN, *end]
  assert said == []


@pytest.mark.parametrize("at_open", [False, True])
@pytest.mark.parametrize("error", [ConnectionError, SystemExit])
def test_a_failure_that_passes_is_told_once_and_loses_nothing(tmp_path, said, at_open, error):
  failing, other = Remembers(2, at_open, error), Remembers()
  track(tmp_path, said, failing, other)
  for writer in (failing, other):
    assert [call for call in writer.calls if call in WRITTEN] == WRITTEN
  (line,) = said
  assert line.startswith("warning: Remembers failed (")
  assert "the server is away" in line


def test_a_tracker_that_always_fails_is_left(tmp_path, said):
  failing = Remembers(10_000)
  track(tmp_path, said, failing, lines=8)
  # Three calls, each after the first try and its two pauses.
  assert failing.failures == 10_000 - 3 * 3
  assert len(said) == 1


def test_a_tracker_that_hangs_stops_nothing(tmp_path, said, monkeypatch):
  monkeypatch.setattr(tracking, "PATIENCE", 0.1)
  ends = threading.Event()
  writer = Remembers()
  writer.write = lambda step, values: ends.wait(30)
  began = time.monotonic()
  track(tmp_path, said, writer, lines=1)
  ends.set()
  assert time.monotonic() - began < 10
  assert said == ["warning: Remembers is not done after 0 s; the run ends without it"]


def test_a_missing_package_names_its_extra():
  writer = Remembers()
  writer.needs, writer.extra = ("json", "no_such_package"), "cloud"
  with pytest.raises(UserError, match=r"needs the package no_such_package.*EXTRAS=cloud"):
    tracking.require_installed([writer])
  writer.needs = ("json",)
  tracking.require_installed([writer])
