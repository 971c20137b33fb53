"""Real processes that play the hosts of a run of a few thousand parameters, for tests that attack
them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import preparations
from training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
# Within which every process has ended, whatever happened to one of them.
END_SECONDS = 60
RUN = """
from __gin__ import dynamic_registration
from data import corpora
from data import dataset
from parallel import rules
from parallel import sharding_plan
from training import loop

include 'experiment.gin'
include 'models/hawk.gin'
include 'sizes/tiny.gin'
include 'mesh/data.gin'
include 'kernels/auto.gin'
include 'data/text_files_bytes.gin'
include 'train/steps.gin'

WIDTH = 32
RNN_WIDTH = 32
HEADS = 4
DEPTH = 1
VOCAB_SIZE = 260
SEQUENCE_LENGTH = 32
BATCH_SIZE = 8
STEPS = {steps}
WARMUP_STEPS = 2
LEARNING_RATE = 1e-3
TEXT_FILES = '{folder}/*.txt'
corpora.TextFiles.heldout_fraction = 0.3
dataset.TextDataset.cache_dir = '{folder}/cache'
loop.LoopOptions.log_every = 1
loop.LoopOptions.checkpoint_every = 5
# In a model this small, vectors are more than 1% of it.
rules.Rules.max_replicated = 1.0
sharding_plan.Parallelism.rules = @rules.Rules()
"""
# What C++ says of an end that was not meant: nothing a user should have to read.
CRASHES = ("terminate called", "FATAL:", "Check failure stack trace")
# So that a run is still under way when it is attacked.
ENDLESS = ("--gin.STEPS=100000", "--gin.training.loop.LoopOptions.checkpoint_every=50")


def write_run(folder: Path, steps: int, run: str = RUN) -> None:
  """Text to learn from, and the run file `run.gin`."""
  for number in range(60):
    (folder / f"{number}.txt").write_text(f"Document {number}: é 🎉 says hello.\n" * 3)
  (folder / "run.gin").write_text(run.format(folder=folder, steps=steps))


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def start(
  folder: Path,
  run: str,
  count: int,
  *arguments: str,
  last: Sequence[str] = (),
  command: Sequence[str] = (),
  port: int | None = None,
  only: Sequence[int] | None = None,
  folders: Sequence[Path] = (ROOT, ROOT),
  forked: bool = True,
) -> list[subprocess.Popen]:
  """Starts the processes of a run, each with a device or, if there are two, two.

  Args:
    folder: what `write_run` filled; run: the name of the run's directory in it.
    count: of processes.
    arguments: for all of them; last: for the last alone.
    command: in place of that run.
    port: the coordinator's.
    only: the processes to start.
    folders: the working directories of two processes.
    forked: whether one server forks the processes; not where they are stopped (SIGSTOP).
  """
  command = command or ["launch.train", str(folder / "run.gin"), f"--run_dir={folder / run}"]
  environment = {
    **os.environ,
    **(preparations.forked() if forked else {}),
    "PYTHONPATH": preparations.with_hook(ROOT),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={4 // count}",
    "JAX_COMPILATION_CACHE_DIR": f"{os.environ['JAX_COMPILATION_CACHE_DIR']}_hosts_{count}",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  port = port or free_port()
  processes = []
  for index in only or range(count):
    joining = [f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={index}"]
    processes.append(
      subprocess.Popen(
        [
          *(sys.executable, "-m", *_without(last if index == count - 1 else (), command)),
          *arguments,
          *(joining if count > 1 else ()),
          *(last if index == count - 1 else ()),
        ],
        cwd=folders[min(index, 1)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
    )
  return processes


def _without(options: Sequence[str], command: Sequence[str]) -> list[str]:
  """A command without the options that are given anew."""
  names = {option.partition("=")[0] for option in options}
  return [word for word in command if word.partition("=")[0] not in names]


def finish(processes: list[subprocess.Popen], statuses: Sequence[int] = (0,)) -> list[str]:
  """What the processes printed, once all have ended with one of the statuses."""
  outputs = _outputs(processes, seconds=240)
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode in statuses, output
    assert not any(crash in output for crash in CRASHES), output
  return outputs


def end(processes: list[subprocess.Popen]) -> list[str]:
  """What the processes printed, which all end within a minute from now."""
  outputs = _outputs(processes, END_SECONDS)
  for output in outputs:
    assert not any(crash in output for crash in CRASHES), output
  return outputs


def _outputs(processes: list[subprocess.Popen], seconds: float) -> list[str]:
  """What the processes printed; the test fails with all of it if one is alive after that time."""
  until = time.monotonic() + seconds
  outputs = []
  try:
    for process in processes:
      outputs.append(process.communicate(timeout=max(0.1, until - time.monotonic()))[0])
    return outputs
  except subprocess.TimeoutExpired:
    alive = [number for number, process in enumerate(processes) if process.poll() is None]
    for process in processes:
      process.kill()
    outputs += [process.communicate(timeout=10)[0] for process in processes[len(outputs) :]]
    pytest.fail("\n".join([f"processes {alive} are alive after {seconds} s", *outputs]))
  finally:
    for process in processes:
      process.kill()


def wait_for_step(folder: Path, run: str, least: int, processes: list[subprocess.Popen]) -> None:
  """Returns once the run has told of a step."""
  metrics = folder / run / "metrics.jsonl"
  while all(process.poll() is None for process in processes):
    if metrics.exists() and any(r["step"] >= least for r in read_metrics(metrics)):
      return
    time.sleep(0.02)
  for process in processes:
    process.kill()
  pytest.fail("\n".join(process.communicate()[0] for process in processes))
