"""Messages of a run on the screen and in its file."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest

from training import loop, metrics
from training import record as record_lib
from training.record import TrainingLog


def record_of(path, stream, *, log_every=3):
  return TrainingLog(
    options=loop.LoopOptions(steps=10, log_every=log_every),
    learning_rate=lambda step: 0.1 * step,
    bytes_per_token=1.0,
    metrics=metrics.MetricsFile(path),
    progress=metrics.ProgressLine(10, stream),
    pending=[],
    heldout={},
  )


def step_metrics(loss):
  values = {"loss": loss, "grad_norm": 1.0, "targets": 8.0, "skipped": 0, "skipped_in_a_row": 0}
  return {name: np.asarray(value) for name, value in values.items()}


class Full(io.StringIO):
  """A stream on a disk without space."""

  def write(self, text):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("live", [False, True])
def test_the_screen_and_the_file_tell_one_loss(tmp_path, live):
  stream = io.StringIO()
  stream.isatty = lambda: live
  record = record_of(tmp_path / "metrics.jsonl", stream)
  record.progress._shown = -1.0
  for step, loss in enumerate([5.0, 1.0, 3.0], start=1):
    record.record(step, step_metrics(loss))
    record.progress._shown = -1.0
  (line,) = metrics.read_metrics(tmp_path / "metrics.jsonl")
  assert line["loss"] == 3.0
  shown = re.findall(r"step 3/10  loss (\S+)  bits/byte (\S+)", stream.getvalue())[-1]
  assert float(shown[0]) == line["loss"]
  assert float(shown[1]) == pytest.approx(line["bits_per_byte"], rel=1e-3)


def test_speed_counts_all_tokens_and_symbols_have_no_bits_per_byte(tmp_path):
  record = record_of(tmp_path / "metrics.jsonl", stream := io.StringIO(), log_every=1)
  record.bytes_per_token, record.tokens_per_target = None, 16.0
  record._clock -= 1000.0
  # 8 targets in 1000 s, with the 15 tokens before each.
  record.record(1, step_metrics(2.0))
  (line,) = metrics.read_metrics(tmp_path / "metrics.jsonl")
  assert line["tokens_per_second"] == pytest.approx(0.128, rel=1e-2)
  assert "bits_per_byte" not in line
  assert "bits/byte" not in stream.getvalue()
  metrics.plot_losses([line], tmp_path / "loss.png", "a task")


def test_a_screen_that_is_gone_ends_no_run(tmp_path):
  record = record_of(tmp_path / "metrics.jsonl", Full(), log_every=1)
  record.record(1, step_metrics(2.0))
  record.record_heldout(1, {"heldout_loss": 1.0})
  assert [line["step"] for line in metrics.read_metrics(tmp_path / "metrics.jsonl")] == [1, 1]


def test_the_first_line_has_the_time_left_if_the_steps_are_timed_before_it(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
  stream = io.StringIO()
  progress = metrics.ProgressLine(11, stream)
  progress.started(1)
  now[0] += 8.0
  progress.show(3, {})
  assert stream.getvalue() == "step 3/11  ETA 0:32\n"
  stream.truncate(0)
  stream.seek(0)
  metrics.ProgressLine(11, stream).show(3, {})
  assert stream.getvalue() == "step 3/11\n"


def test_the_rate_of_a_short_last_line_is_not_shown(tmp_path, monkeypatch):
  stream, clock = io.StringIO(), [0.0]
  monkeypatch.setattr(record_lib.time, "monotonic", lambda: clock[0])
  record = record_of(tmp_path / "metrics.jsonl", stream, log_every=9)
  for step in range(1, 11):
    clock[0] += 1.0 if step < 10 else 100.0  # the last line is a single step, after a pause
    record.record(step, step_metrics(1.0))
  rates = [line["tokens_per_second"] for line in metrics.read_metrics(tmp_path / "metrics.jsonl")]
  assert rates == [8.0, 0.08]
  assert re.findall(r"tokens/s (\S+)", stream.getvalue()) == ["8", "8"]


def test_work_without_lines_of_its_own_shows_its_last_step_and_long_waits(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
  progress = metrics.ProgressLine(11, io.StringIO())
  shown = []
  for step in range(1, 12):
    now[0] += 4.0
    if progress.is_due(step):
      progress.show(step, {})
      shown.append(step)
  assert shown == [4, 8, 11]


def test_progress_counts_what_it_is_told_to_count():
  stream = io.StringIO()
  progress = metrics.ProgressLine(13, stream, unit="batch")
  progress.show(13, {"bits/byte": 2.5})
  assert stream.getvalue() == "batch 13/13  bits/byte 2.5  ETA 0:00\n"
