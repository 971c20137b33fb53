"""Metrics in a bucket: what a crash may lose."""

from __future__ import annotations

import time

import pytest

from base import paths
from tests import bucket_servers
from training import metric_writers, object_file
from training.metrics import MetricsFile, read_metrics
from training.tracking import Tracking


@pytest.fixture(params=["gs", "s3"])
def file(request, monkeypatch):
  bucket_servers.use(monkeypatch)
  found = paths.absolute(f"{request.param}://{bucket_servers.BUCKET}/run/metrics.jsonl")
  yield found
  found.parent.rmtree(missing_ok=True)


def test_lines_appear_within_seconds_and_before_a_checkpoint(file, monkeypatch):
  monkeypatch.setattr(object_file, "SECONDS", 0.2)
  asked = []
  metrics = MetricsFile(file, before_writing=lambda: asked.append(1))
  metrics.write({"step": 1})
  end = time.monotonic() + 5
  while not file.exists():
    assert time.monotonic() < end
    time.sleep(0.05)
  assert read_metrics(file) == [{"step": 1}]
  metrics.write({"step": 2})
  metrics.sync()
  position = metrics.position
  assert [record["step"] for record in read_metrics(file)] == [1, 2]
  metrics.write({"step": 3})
  metrics.close()
  assert [record["step"] for record in read_metrics(file)] == [1, 2, 3]
  assert len(asked) == 4  # at the start and before each write, not for each line
  again = MetricsFile(file, position)
  again.write({"step": 4})
  again.close()
  assert [record["step"] for record in read_metrics(file)] == [1, 2, 4]


@pytest.mark.parametrize("error", [OSError(5, "no"), RuntimeError("no")])
def test_storage_that_fails_for_a_while_loses_nothing(file, monkeypatch, error):
  metrics = MetricsFile(file)
  works = type(file).write_bytes
  monkeypatch.setattr(type(file), "write_bytes", lambda *_: (_ for _ in ()).throw(error))
  metrics.write({"step": 1})
  with pytest.raises(Exception, match="cannot be written: no") as caught:
    metrics.sync()
  assert caught.value.may_pass
  monkeypatch.setattr(type(file), "write_bytes", works)
  metrics.close()
  assert read_metrics(file) == [{"step": 1}]


def test_tensorboard_files_are_copied(file):
  writer = metric_writers.TensorBoard().open(file.parent, 0)
  writer.write(1, {"loss": 2.0})
  writer.close()
  (events,) = list((file.parent / "tensorboard").iterdir())
  assert events.stat().st_size > 0


def test_trackers_get_a_picture_as_a_file_of_this_machine(file):
  class Album:
    def open(self, run_dir, step):
      return self

    def picture(self, step, picture):
      seen.append((step, picture.name, open(picture, "rb").read()))  # noqa: SIM115

    def close(self):
      pass

  seen, said = [], []
  picture = file.parent / "loss.png"
  picture.write_bytes(b"pixels")
  with Tracking() as trackers:
    trackers.open([Album()], file.parent, 0, say=said.append)
    trackers.picture(3, picture)
  assert (seen, said) == ([(3, "loss.png", b"pixels")], [])
