"""What trackers get, read back from what they wrote."""

import json
import os
import struct
import time

import pytest

from tests import small_run
from training import metrics, trackers

HYPERPARAMETERS = {"optimizer.AdamW.b1": 0.9, "griffin.griffin.pattern": ("recurrent",)}


def wandb_records(file):
  """The records of a run's file: 7 bytes, then LevelDB's log format."""
  from wandb.proto import wandb_internal_pb2

  data, place, record = file.read_bytes(), 7, b""
  while place + 7 <= len(data):
    if 2**15 - place % 2**15 < 7:
      place += 2**15 - place % 2**15  # the trailer of a block
      continue
    length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
    record += data[place + 7 : place + 7 + length]
    place += 7 + length
    if kind in (1, 4):  # whole, or the last part
      yield wandb_internal_pb2.Record.FromString(record)
      record = b""


def wandb_run(folder):
  """Id, configuration, and history by step, of the runs of a run directory in the order of time."""
  found = []
  for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
    # wandb's own process writes the end of a file a moment after the run has finished.
    ends = time.monotonic() + 30
    while not (records := list(wandb_records(file))) or not records[-1].HasField("exit"):
      assert time.monotonic() < ends, f"{file} has no end"
      time.sleep(0.05)
    (run,) = {r.run.run_id for r in records if r.WhichOneof("record_type") == "run"}
    config, rows = {}, []
    for record in records:
      for update in [*record.run.config.update, *record.config.update]:
        config["/".join(update.nested_key) or update.key] = json.loads(update.value_json)
      if record.WhichOneof("record_type") == "history":
        items = {
          "/".join(item.nested_key) or item.key: json.loads(item.value_json)
          for item in record.history.item
        }
        rows.append(items)
    found.append((run, config, rows))
  return found


def test_a_training_and_its_resumption_are_one_run_of_wandb(tmp_path, monkeypatch):
  from launch import train

  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.chdir(tmp_path)
  small_run.write("run.gin")
  arguments = ["run.gin", "trackers/wandb.gin", "trackers/tensorboard.gin", "--run_dir=a"]
  arguments.append("--gin.training.loop.LoopOptions.log_every=2")
  assert train.main([*arguments, "--gin.STEPS=4", "--gin.WARMUP_STEPS=1"]) == 0
  assert train.main([*arguments, "--gin.STEPS=6", "--gin.WARMUP_STEPS=1", "--resume=force"]) == 0
  first, second = wandb_run(tmp_path / "a")
  assert first[0] == second[0] == trackers.ids(tmp_path / "a")["wandb"]
  assert first[1]["loop.LoopOptions.steps"] == 4
  assert second[1]["loop.LoopOptions.steps"] == 6
  assert first[1]["optimizer.AdamW.b1"] == 0.9
  rows = [row for _, _, run in (first, second) for row in run]
  losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
  kept = metrics.read_metrics(tmp_path / "a" / "metrics.jsonl")
  assert losses == {line["step"]: line["loss"] for line in kept if "loss" in line}
  assert [row["step"] for row in rows if "heldout_loss" in row] == [4, 6]
  assert [row["step"] for row in rows if "step_seconds" in row] == [2, 4, 6]
  media = [row for row in rows if {"samples/path", "loss_picture/path"} & row.keys()]
  assert media, rows[-1]
  folders = sorted((tmp_path / "a").glob("wandb/offline-run-*/files/media"))
  for folder in folders:
    (table,) = folder.glob("table/samples_*.json")
    assert json.loads(table.read_text())["columns"] == ["prompt", "text"]
    (picture,) = folder.glob("images/*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
  assert len(folders) == 2
  assert list((tmp_path / "a" / "tensorboard").iterdir())


def use(tracker, run_dir, loss_file):
  """Two lives of a run; the second changes a value of its configuration."""
  for step, hyperparameters in ((2, {}), (4, {"STEPS": 4})):
    writer = tracker.open(run_dir, step - 2)
    writer.hyperparameters({**HYPERPARAMETERS, "STEPS": 2, **hyperparameters})
    writer.write(step, {"loss": 6.0 / step, "grad_norm": None})
    writer.samples(step, {"The ": "end"})
    writer.picture(step, loss_file)
    writer.close()


@pytest.fixture
def run_dir(tmp_path):
  folder = tmp_path / "runs" / "first"
  folder.mkdir(parents=True)
  metrics.plot_losses([], folder / "loss.png", "first")
  return folder


def test_two_lives_are_one_run_of_mlflow(run_dir):
  pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
  from mlflow.tracking import MlflowClient

  use(trackers.MLflow(), run_dir, run_dir / "loss.png")
  client = MlflowClient(f"sqlite:///{run_dir.parent / 'mlflow.db'}")
  (run,) = client.search_runs([client.get_experiment_by_name("griffin").experiment_id])
  assert run.info.run_id == trackers.ids(run_dir)["mlflow"]
  assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
  assert run.data.params["optimizer.AdamW.b1"] == "0.9"
  assert (run.data.params["STEPS"], run.data.tags["STEPS"]) == ("2", "4")
  history = client.get_metric_history(run.info.run_id, "loss")
  assert [(one.step, one.value) for one in history] == [(2, 3.0), (4, 1.5)]
  artifacts = {one.path for one in client.list_artifacts(run.info.run_id)}
  assert artifacts == {"loss.png", "samples_2.json", "samples_4.json"}


def test_mlflow_takes_many_values_that_changed(run_dir):
  pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
  writer = trackers.MLflow().open(run_dir, 0)
  for value in (1, 2):
    writer.hyperparameters({f"name_{number}": value for number in range(250)})
  assert len(writer._client.get_run(writer._id).data.tags) >= 250


def test_two_lives_are_one_run_of_trackio(run_dir, monkeypatch):
  monkeypatch.setenv("TRACKIO_DIR", str(run_dir.parent / "trackio"))
  trackio = pytest.importorskip("trackio", reason="the extra trackio is not installed")

  use(trackers.Trackio(), run_dir, run_dir / "loss.png")
  (run,) = trackio.Api().runs("griffin")
  assert run.name == trackers.ids(run_dir)["trackio"]


def test_a_damaged_file_of_ids_starts_a_new_run_and_a_second_tracker_keeps_the_first_s(tmp_path):
  file = tmp_path / trackers.IDS_FILE
  file.write_text('{"wandb": 3}')
  assert trackers.run_id(tmp_path, "wandb", lambda: "one") == "one"
  assert trackers.run_id(tmp_path, "mlflow", lambda: "two") == "two"
  assert trackers.run_id(tmp_path, "wandb", lambda: "three") == "one"
  assert os.listdir(tmp_path) == [trackers.IDS_FILE]


def test_a_tracker_that_is_slow_to_make_its_id_keeps_that_of_a_faster_one(tmp_path):
  def slow() -> str:
    trackers.run_id(tmp_path, "wandb", lambda: "fast")  # as another thread does meanwhile
    return "slow"

  assert trackers.run_id(tmp_path, "mlflow", slow) == "slow"
  assert trackers.ids(tmp_path) == {"wandb": "fast", "mlflow": "slow"}
