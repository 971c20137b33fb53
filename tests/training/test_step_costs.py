"""What a line of metrics says about the time of steps, by the definitions of docs/watching.md."""

import dataclasses
import json

import numpy as np
import pytest

from models import accounting
from planning.hardware import catalogue
from tests.planning.test_plan_record import numbered_plan
from training import loop, metrics
from training.record import TrainingLog
from training.step_costs import SPEEDS, StepCosts, Work, earlier_lives

KINDS = {
  "TPU v5 lite": "v5e-8",
  "TPU v5": "v5p-8",
  "TPU v6 lite": "v6e-8",
  "NVIDIA H200": "h200-8",
  "NVIDIA H100 80GB HBM3": "h100-8",
}


class Clock:
  """A clock that only the test moves."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now

  def pass_by(self, seconds):
    self.now += seconds


@pytest.fixture
def clock():
  return Clock()


def steps(costs, clock, *seconds, taken=True):
  for one in seconds:
    clock.pass_by(one)
    costs.step_done(taken)


def test_a_line_has_the_median_and_the_worst_step_since_the_last_line(clock):
  costs = StepCosts(now=clock)
  clock.pass_by(50)  # compilation
  costs.start()
  steps(costs, clock, 1, 9, 2)
  line = costs.line()
  assert (line["step_seconds"], line["worst_step_seconds"]) == (2, 9)
  steps(costs, clock, 4, 5)
  line = costs.line()
  assert (line["step_seconds"], line["worst_step_seconds"]) == (4.5, 5)


def test_an_evaluation_and_a_checkpoint_are_no_part_of_a_step(clock):
  costs = StepCosts(now=clock)
  costs.start()
  steps(costs, clock, 2)
  with costs.pause():
    clock.pass_by(30)
  with costs.pause(checkpoint=True):
    clock.pass_by(7)
  steps(costs, clock, 2)
  line = costs.line()
  assert (line["worst_step_seconds"], line["checkpoint_seconds"]) == (2, 7)
  assert costs.line()["checkpoint_seconds"] == 0


def test_a_wait_for_data_is_a_part_of_the_step_and_told_per_step(clock):
  costs = StepCosts(now=clock)
  costs.start()
  for wait in (3, 0):
    with costs.waiting():
      clock.pass_by(wait)
    steps(costs, clock, 1)
  line = costs.line()
  assert (line["data_wait_seconds"], line["worst_step_seconds"]) == (1.5, 4)


def test_mfu_is_the_plan_s(clock):
  expected = dataclasses.replace(numbered_plan().expected, model_flops=6e12, peak_flops=2e12)
  costs = StepCosts(work=Work(6e12, 2e12), now=clock)
  costs.start()
  steps(costs, clock, expected.seconds, 1, 99)
  assert costs.line()["mfu"] == expected.mfu == accounting.mfu(6e12, 2e12, 8.0) == 0.375


def test_without_a_peak_or_a_timed_step_there_is_no_mfu(clock):
  costs = StepCosts(now=clock)
  costs.start()
  steps(costs, clock, 1)
  assert "mfu" not in costs.line()
  costs = StepCosts(work=Work(1.0, 1.0), now=clock)
  assert {"mfu", "step_seconds", "data_wait_seconds"}.isdisjoint(costs.line())


@pytest.mark.parametrize("kind", KINDS)
def test_an_attached_device_has_the_peak_that_plans_take(kind):
  assert catalogue.chip_of(kind) == catalogue.hardware(KINDS[kind]).chip


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "TPU v2"])
def test_other_devices_have_no_known_peak(kind):
  assert catalogue.chip_of(kind) is None


class Life:
  """One life of a run that writes a line a step; its first step compiles, for 10 s."""

  def __init__(self, folder, clock, first, kept=None, position=0):
    self.clock, self.step = clock, first
    earlier = earlier_lives(folder, "metrics.jsonl", kept)
    self.costs = StepCosts(**earlier, now=clock)
    self.file = metrics.MetricsFile(folder / "metrics.jsonl", position)
    self.log = TrainingLog(
      options=loop.LoopOptions(steps=100, log_every=1),
      learning_rate=lambda step: 0.1,
      bytes_per_token=1.0,
      metrics=self.file,
      progress=metrics.ProgressLine(100),
      pending=[],
      heldout={},
      costs=self.costs,
    )
    clock.pass_by(10)
    self.log.started(first)
    self._record()

  def _record(self, skipped=0):
    values = {"loss": 1.0, "grad_norm": 1.0, "targets": 8.0, "skipped": skipped}
    values["skipped_in_a_row"] = skipped
    self.log.record(self.step, {name: np.asarray(value) for name, value in values.items()})

  def take(self, *seconds, skipped=0):
    for one in seconds:
      self.clock.pass_by(one)
      self.step += 1
      self._record(skipped)


def last_line(folder):
  return metrics.read_metrics(folder / "metrics.jsonl")[-1]


def test_goodput_is_the_share_of_all_lives_in_steps_that_count(tmp_path, clock):
  life = Life(tmp_path, clock, first=1)
  life.take(2, 2)
  kept, position = json.loads(json.dumps(life.costs.state())), life.file.position
  assert last_line(tmp_path)["goodput"] == 4 / 14
  life.take(2, 2)  # lost: killed before the next checkpoint
  assert last_line(tmp_path)["goodput"] == 8 / 18
  clock.pass_by(1000)  # nobody runs it
  life = Life(tmp_path, clock, 4, kept, position)
  life.take(2, 2)
  line = last_line(tmp_path)
  assert line["wall_seconds"] == 18 + 14
  assert line["goodput"] == (4 + 4) / 32


def test_a_life_without_a_checkpoint_is_lost_and_its_time_is_not(tmp_path, clock):
  Life(tmp_path, clock, first=1).take(2, 2)
  (tmp_path / "metrics.jsonl").rename(tmp_path / "metrics.1.jsonl")
  Life(tmp_path, clock, first=1).take(2)
  assert last_line(tmp_path)["goodput"] == 2 / (14 + 12)


def test_a_skipped_step_does_not_count(tmp_path, clock):
  life = Life(tmp_path, clock, first=1)
  life.take(2)
  life.take(2, skipped=1)
  assert last_line(tmp_path)["goodput"] == 2 / 14


def test_a_checkpoint_of_an_earlier_version_and_a_damaged_file_start_from_nothing(tmp_path):
  (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "wall_sec')
  assert earlier_lives(tmp_path, "metrics.jsonl", None) == {"wall": 0.0, "counted": 0.0}


def test_every_figure_of_speed_is_known_as_one(tmp_path, clock):
  life = Life(tmp_path, clock, first=1)
  life.take(2)
  of_the_run = {"step", "loss", "bits_per_byte", "grad_norm", "learning_rate", "targets", "skipped"}
  assert last_line(tmp_path).keys() - of_the_run == SPEEDS - {
    "mfu",
    "device_memory_bytes",  # CPUs do not tell
    "device_memory_peak_bytes",
  }
