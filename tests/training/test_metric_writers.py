"""Metrics reach every writer that a configuration names."""

import dataclasses
import math
import warnings
from pathlib import Path

import pytest

from tests import small_run
from training import metrics
from training.metric_writers import TensorBoard

WRITTEN = []


@dataclasses.dataclass(frozen=True)
class Collects:
  """A writer that a user defines."""

  name: str

  def open(self, run_dir: Path, step: int):
    WRITTEN.append((self.name, run_dir.name, step))
    return self

  def write(self, step, values):
    WRITTEN.append((step, dict(values)))

  def close(self):
    WRITTEN.append("closed")


@pytest.fixture(autouse=True)
def nothing_written():
  WRITTEN.clear()


def test_tensorboard_reads_what_was_written(tmp_path):
  from tensorboardX.proto import event_pb2
  from tensorboardX.record_writer import masked_crc32c  # noqa: F401 - the format's own module

  writer = TensorBoard().open(tmp_path, 0)
  writer.write(1, {"loss": 2.5, "grad_norm": None})
  writer.close()
  (file,) = (tmp_path / "tensorboard").iterdir()
  data, found = file.read_bytes(), {}
  while data:
    length = int.from_bytes(data[:8], "little")
    event = event_pb2.Event.FromString(data[12 : 12 + length])
    found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
    data = data[16 + length :]
  assert found[1, "loss"] == 2.5
  assert math.isnan(found[1, "grad_norm"])


def test_a_training_opens_the_writers_that_its_configuration_names(tmp_path, monkeypatch):
  from launch import train

  monkeypatch.chdir(tmp_path)
  small_run.write(tmp_path / "run.gin")
  (tmp_path / "mine.gin").write_text(
    "from __gin__ import dynamic_registration\n"
    "from tests.training import test_metric_writers\nfrom training import loop\n"
    f"include '{tmp_path}/run.gin'\n"
    "loop.LoopOptions.writers = (@test_metric_writers.Collects(),)\n"
    "test_metric_writers.Collects.name = 'mine'\n"
  )
  arguments = ["--gin.STEPS=2", "--gin.WARMUP_STEPS=1"]
  assert train.main(["mine.gin", "--run_dir=runs/a", *arguments]) == 0
  from tests.training import test_metric_writers as seen_by_gin

  written = seen_by_gin.WRITTEN
  assert written[0] == ("mine", "a", 0)
  assert any(isinstance(one, tuple) and one[0] == 2 and "loss" in one[1] for one in written[1:])
  assert written[-1] == "closed"


def test_the_shipped_file_asks_for_tensorboard():
  from experiment import experiment

  found = experiment.load(["runs/griffin_quickstart.gin", "train/tensorboard.gin"])
  assert experiment.build(found).options.writers == (TensorBoard(),)


@pytest.mark.parametrize("folder", ["/tmp/elsewhere", "../elsewhere", ""])
def test_event_files_stay_in_the_run_directory(folder):
  with pytest.raises(ValueError, match="must be a folder of the run directory"):
    TensorBoard(folder)


def test_a_run_that_logged_nothing_gets_a_picture_without_a_warning(tmp_path):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    metrics.plot_losses([], tmp_path / "loss.png", "run")
  assert (tmp_path / "loss.png").stat().st_size
