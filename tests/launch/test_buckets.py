"""Commands on paths in buckets: run directories, sources and targets on `gs://` and `s3://`."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from base import paths
from base.errors import UserError
from data import corpora
from data.dataset import TextDataset
from data.manifest import MANIFEST_FILE
from data.tokenizers import Bytes
from launch import convert, evaluate, generate, train
from tests import bucket_servers, small_run
from training import checkpoint, checkpoint_reader
from training.metrics import METRICS_FILE, read_metrics
from training.step_costs import SPEEDS

SCHEMES = ("gs", "s3")
STEPS = 120
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A folder with a gin file and a finished run `reference` of it, on this machine."""
  folder = tmp_path_factory.mktemp("home")
  text = small_run.RUN.format(text=small_run.shared_text())
  text = text.replace(
    "from models import griffin",
    "from experiment import experiment\nfrom models import griffin\nfrom training import loop",
  )
  text = text.replace("models/griffin.gin", "models/recurrent_gemma.gin")
  text = text.replace("STEPS = 6", f"STEPS = {STEPS}")
  text += "experiment.Experiment.samples = ()\n"
  text += "loop.LoopOptions.checkpoint_every = 20\nloop.LoopOptions.evaluate_every = 60\n"
  (folder / "run.gin").write_text(text)
  with pytest.MonkeyPatch.context() as patch:
    bucket_servers.use(patch)
    patch.chdir(folder)
    assert train.main(["run.gin", "--run_dir=reference"]) == 0
    yield folder


@pytest.fixture(scope="module", params=SCHEMES)
def resumed(request, home):
  """The address of a run that was killed after its first checkpoint, and then continued.

  Its text and its rows lie in the bucket too.
  """
  run = f"{request.param}://{bucket_servers.BUCKET}/runs/first"
  text = f"{request.param}://{bucket_servers.BUCKET}/text"
  for file in small_run.shared_text().glob("*.txt"):
    (paths.absolute(text) / file.name).write_bytes(file.read_bytes())
  arguments = ["run.gin", f"--run_dir={run}", f"--gin.TEXT_FILES={text}/*.txt"]
  arguments += [f"--gin.dataset.TextDataset.cache_dir={text}-rows"]
  command = [sys.executable, "-m", "launch.train", *arguments]
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
  end = time.monotonic() + 120
  while not checkpoint.available_steps(paths.absolute(run)):
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < end
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  assert checkpoint.available_steps(paths.absolute(run))[-1] < STEPS
  assert train.main(arguments) == 0
  assert list(paths.absolute(f"{text}-rows").glob(f"*/{MANIFEST_FILE}"))
  return run


def records(folder) -> list[dict]:
  found = read_metrics(folder / METRICS_FILE)
  return [{k: v for k, v in record.items() if k not in SPEEDS} for record in found]


def test_killed_run_in_a_bucket_continues_bit_for_bit(home, resumed):
  run, reference = paths.absolute(resumed), home / "reference"
  assert checkpoint.available_steps(run) == checkpoint.available_steps(reference)
  ours, theirs = (
    checkpoint_reader.sealed_contents(folder / "checkpoints" / str(STEPS))["checksums"]
    for folder in (run, reference)
  )
  assert ours == theirs  # of every array of the train state
  assert records(run) == records(reference)
  assert (run / "loss.png").is_file()
  left = {path.name for path in run.iterdir()} - {path.name for path in reference.iterdir()}
  assert not left  # no lock, nor files of an interrupted write


def printed(capsys, command, arguments) -> str:
  capsys.readouterr()
  assert command.main(arguments) == 0
  return capsys.readouterr().out


def test_evaluate_and_generate_read_a_bucket(home, resumed, capsys):
  for command, arguments in (
    (evaluate, ["--checkpoint=latest"]),
    (generate, ["--prompt=Document", "--temperature=0", "--max_tokens=20"]),
  ):
    ours = printed(capsys, command, [f"--run_dir={resumed}", *arguments])
    theirs = printed(capsys, command, ["--run_dir=reference", *arguments])
    assert ours.replace(resumed, "reference") == theirs
  ours, theirs = (
    sorted(path.name for path in (paths.of(run) / "evaluations").iterdir())
    for run in (resumed, "reference")
  )
  assert len(ours) == len(theirs) == 1


def test_conversion_reads_and_writes_a_bucket(home, resumed, capsys):
  exported, imported = f"{resumed}-exported", f"{resumed}-imported"
  assert convert.main([resumed, exported]) == 0
  assert convert.main([exported, imported, "--vocabulary=bytes"]) == 0
  texts = [
    printed(capsys, generate, [f"--run_dir={run}", "--temperature=0", "--max_tokens=20"])
    for run in ("reference", imported)
  ]
  assert texts[0] == texts[1]
  with pytest.raises(UserError, match="is not empty"):
    convert.main([resumed, exported])


def test_run_starts_from_a_bucket(home, resumed):
  arguments = [f"--init_from={resumed}", f"--run_dir=tuned-{resumed[:2]}", "--gin.STEPS=4"]
  assert train.main(arguments) == 0
  assert resumed in (home / f"tuned-{resumed[:2]}" / "config.gin").read_text()


def test_rows_in_a_bucket_are_the_same_rows(home, resumed):
  """Prepares into a bucket, and trains from there on a machine that has neither text nor rows."""
  cache = f"{resumed[:2]}://{bucket_servers.BUCKET}/cache"
  dataset = TextDataset(
    corpora.TextFiles(f"{small_run.shared_text()}/*.txt", heldout_fraction=0.3), Bytes(), 32,
    cache_dir=cache,
  )  # fmt: skip
  local = dataclasses.replace(dataset, cache_dir=f"{small_run.shared_text()}/cache").rows()
  rows = dataset.rows()
  assert not list((home / "cache/to_upload").glob("*/*"))
  assert rows.fingerprint == local.fingerprint
  order = np.random.default_rng(0).permutation(len(local))
  for row in order:
    np.testing.assert_array_equal(rows.tokens[row], local.tokens[row])
    np.testing.assert_array_equal(rows.segment_ids[row], local.segment_ids[row])
  np.testing.assert_array_equal(rows.tokens[3:40], local.tokens[3:40])
  assert rows.text_bytes(7) == local.text_bytes(7)
  manifest = paths.absolute(cache) / rows.directory.name / MANIFEST_FILE
  manifest.unlink()
  assert not dataset.is_prepared()
