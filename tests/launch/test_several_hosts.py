"""Training and comparing on several processes: the same results whatever their number, through
deaths and restarts.

Slow because each life is a start of Python, JAX and a compilation in every process; a test with one
process would not notice a host that reads the wrong rows or saves half a checkpoint.
"""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from launch import command
from tests.launch import hosts
from training.metrics import read_metrics

STEPS = 40
# Each host has the states of its rows, or of their channels.
RUN = hosts.RUN + "\ninclude 'train/carried_state.gin'\n"
COMPARISON = """
include 'compare/comparison.gin'
include 'compare/parts/long_context.gin'

TITLE = 'Several hosts'
MODELS = {{'Hawk': ['models/hawk.gin']}}
SIZES = {{'tiny': ['STEPS = 3']}}
SHARED = ['{folder}/run.gin']
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
  hosts.write_run(folder, STEPS, RUN)
  (folder / "comparison.gin").write_text(COMPARISON.format(folder=folder))
  return folder


def losses(folder: Path, run: str) -> np.ndarray:
  records = read_metrics(folder / run / "metrics.jsonl")
  found = {record["step"]: record["loss"] for record in records if "loss" in record}
  assert list(found) == list(range(1, STEPS + 1))
  return np.array(list(found.values()))


@pytest.fixture(scope="module")
def alone(folder):
  """The losses of one process."""
  hosts.finish(hosts.start(folder, "alone", 1))
  return losses(folder, "alone")


def test_killed_and_restarted_with_other_numbers_of_processes(folder, alone):
  """Two processes with ZeRO 3, of which one is killed; then four with ZeRO 1 over data and model;
  then one.
  """
  two = hosts.start(folder, "run", 2, "--gin.ZERO_STAGE=3")
  hosts.wait_for_step(folder, "run", 12, two)
  two[1].send_signal(signal.SIGKILL)
  killed = time.monotonic()
  output = two[0].communicate(timeout=120)[0]
  assert time.monotonic() - killed < 60
  assert two[0].returncode != 0
  two[1].communicate()
  assert "error: process 1 (" in output

  force = "--resume=force"
  four = hosts.start(folder, "run", 4, force, "--gin.ZERO_STAGE=1", "--gin.MODEL_SHARDS=2")
  hosts.wait_for_step(folder, "run", 25, four)
  four[2].send_signal(signal.SIGTERM)
  outputs = hosts.finish(four, statuses=(command.PREEMPTED,))
  assert "stopped at step" in outputs[0]
  assert "loss" not in outputs[3]

  hosts.finish(hosts.start(folder, "run", 1, force))
  np.testing.assert_allclose(losses(folder, "run"), alone, rtol=1e-5)


def test_processes_that_disagree_end_before_anything_is_written(folder, alone):
  del alone  # its rows and its compiled programs serve here
  outputs = hosts.finish(
    hosts.start(folder, "disagreeing", 2, last=["--gin.LEARNING_RATE=0.5"]), statuses=(2,)
  )
  for output in outputs:
    assert "the processes disagree about the configuration" in output
    assert re.search(
      r"process 1 \(.*\) has 'LEARNING_RATE = 0.5  # --gin.LEARNING_RATE=0.5'", output
    )
  assert not (folder / "disagreeing").exists()


def test_a_comparison_on_two_processes_finds_what_one_finds(folder):
  found = []
  for count in (1, 2):
    output = folder / f"compared_by_{count}"
    compare = ("launch.compare", str(folder / "comparison.gin"), f"--output={output}")
    hosts.finish(hosts.start(folder, "", count, command=compare))
    assert (output / "report" / "index.html").is_file()
    (figure,) = json.loads((output / "report" / "data.json").read_text())["figures"]
    assert figure["name"] == "long_context_64"
    found.append([(series["x"], series["y"]) for series in figure["series"]])
  np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
