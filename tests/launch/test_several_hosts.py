"""Training and comparing on several processes: the same results whatever their number, through deaths and restarts.

Slow because each life is a start of Python, JAX and a compilation in every process; a test with one
process would not notice a host that reads the wrong rows or saves half a checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 40
RUN = """
from __gin__ import dynamic_registration
from data import corpora
from data import dataset
from parallel import rules
from parallel import layout
from training import loop

include 'experiment.gin'
include 'models/griffin.gin'
include 'sizes/tiny.gin'
include 'mesh/data.gin'
include 'kernels/auto.gin'
include 'data/text_files_bytes.gin'
include 'train/adamw.gin'

WIDTH = 32
RNN_WIDTH = 32
HEADS = 4
DEPTH = 3
VOCAB_SIZE = 260
SEQUENCE_LENGTH = 32
BATCH_SIZE = 8
STEPS = {steps}
WARMUP_STEPS = 2
LEARNING_RATE = 1e-3
TEXT_FILES = '{folder}/*.txt'
corpora.TextFiles.heldout_fraction = 0.3
dataset.TextDataset.cache_dir = '{folder}/cache'
loop.Options.log_every = 1
loop.Options.checkpoint_every = 5
# In a model this small, vectors are more than 1% of it.
rules.Rules.max_replicated = 1.0
layout.Parallelism.rules = @rules.Rules()
"""

COMPARISON = """
include 'compare/comparison.gin'
include 'compare/parts/long_context.gin'

TITLE = 'Several hosts'
MODELS = {{'Griffin': ['models/griffin.gin']}}
SIZES = {{'tiny': ['STEPS = 3']}}
SHARED = ['{folder}/griffin.gin']
SEEDS = (0,)
CONTEXT_SIZE = 'tiny'
CONTEXT_LENGTHS = (64,)
CONTEXT_TOKENS = 512
PARTS = {{'long_context': %LONG_CONTEXT}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Text to learn from, a run file and a comparison."""
  folder = tmp_path_factory.mktemp("hosts")
  for number in range(60):
    (folder / f"{number}.txt").write_text(f"Document {number}: é 🎉 says hello.\n" * 3)
  (folder / "griffin.gin").write_text(RUN.format(folder=folder, steps=STEPS))
  (folder / "comparison.gin").write_text(COMPARISON.format(folder=folder))
  return folder


def start(folder: Path, run: str, count: int, *arguments: str, last=()) -> list[subprocess.Popen]:
  """Starts the processes of a run; `last` is for the last of them alone."""
  command = ["launch.train", str(folder / "griffin.gin"), f"--run_dir={folder / run}", *arguments]
  return start_command(folder, count, *command, last=last)


def start_command(folder: Path, count: int, *command: str, last=()) -> list[subprocess.Popen]:
  """Starts a command in some processes, each with two devices."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
    "JAX_COMPILATION_CACHE_DIR": str(folder / f"compiled_{count}"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  processes = []
  for index in range(count):
    joining = [f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={index}"]
    own = last if index == count - 1 else ()
    processes.append(
      subprocess.Popen(
        [sys.executable, "-m", *command, *(joining if count > 1 else ()), *own],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
  return processes


def finish(processes: list[subprocess.Popen], statuses=(0,)) -> list[str]:
  outputs = [process.communicate(timeout=240)[0] for process in processes]
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode in statuses, output
  return outputs


def wait_for_step(folder: Path, run: str, least: int, processes) -> None:
  metrics = folder / run / "metrics.jsonl"
  while all(process.poll() is None for process in processes):
    if metrics.exists() and any(r["step"] >= least for r in read_metrics(metrics)):
      return
    time.sleep(0.02)
  pytest.fail("\n".join(p.communicate()[0] for p in processes if p.poll() is not None))


def losses(folder: Path, run: str) -> np.ndarray:
  records = read_metrics(folder / run / "metrics.jsonl")
  found = {record["step"]: record["loss"] for record in records if "loss" in record}
  assert list(found) == list(range(1, STEPS + 1))
  return np.array(list(found.values()))


@pytest.fixture(scope="module")
def alone(folder):
  """The losses of one process."""
  finish(start(folder, "alone", 1))
  return losses(folder, "alone")


def test_killed_and_restarted_with_other_numbers_of_processes(folder, alone):
  """Two processes with ZeRO 3, of which one is killed; then four with ZeRO 1 over data and model; then one."""
  two = start(folder, "run", 2, "--gin.ZERO_STAGE=3")
  wait_for_step(folder, "run", 12, two)
  two[1].send_signal(signal.SIGKILL)
  killed = time.monotonic()
  output = two[0].communicate(timeout=120)[0]
  assert time.monotonic() - killed < 60
  assert two[0].returncode != 0
  two[1].communicate()
  assert re.search(r"(?i)task[^\n]*(unhealthy|heartbeat)", output), output
  assert re.search(r"unhealthy[^\n]*\s+(\S*task:)?1\s|Task 1 ", output), output

  force = "--resume=force"
  four = start(folder, "run", 4, force, "--gin.ZERO_STAGE=1", "--gin.MODEL_SHARDS=2")
  wait_for_step(folder, "run", 25, four)
  four[2].send_signal(signal.SIGTERM)
  outputs = finish(four)
  assert "stopped at step" in outputs[0]
  assert "loss" not in outputs[3]

  finish(start(folder, "run", 1, force))
  np.testing.assert_allclose(losses(folder, "run"), alone, rtol=1e-5)


def test_processes_that_disagree_end_before_anything_is_written(folder, alone):
  del alone  # its rows and its compiled programs serve here
  outputs = finish(start(folder, "disagreeing", 2, last=["--gin.LEARNING_RATE=0.5"]), statuses=(2,))
  for output in outputs:
    assert "the processes disagree about the configuration" in output
    assert "process 1 has 'LEARNING_RATE = 0.5  # --gin.LEARNING_RATE=0.5'" in output
  assert not (folder / "disagreeing").exists()


def test_a_comparison_on_two_processes_finds_what_one_finds(folder):
  found = []
  for count in (1, 2):
    output = folder / f"compared_by_{count}"
    command = ("launch.compare", str(folder / "comparison.gin"), f"--output={output}")
    finish(start_command(folder, count, *command))
    assert (output / "report" / "index.html").is_file()
    (figure,) = json.loads((output / "report" / "data.json").read_text())["figures"]
    assert figure["name"] == "long_context_64"
    found.append([(series["x"], series["y"]) for series in figure["series"]])
  np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
