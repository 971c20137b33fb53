"""Packs shards as an array of SLURM jobs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from base.wording import plural
from data import executors
from data.files import CorpusError
from data.preparation import PreparationError

_SCRIPT = "prepare.sbatch"
_SECONDS_BETWEEN_LOOKS = 0.3


def script(executor: executors.Slurm, folder: Path, jobs: int) -> str:
  """Returns the script of an array whose job I packs what `folder`/I.request says."""
  # sbatch replaces %a by the job's number, and %% by %.
  output = shlex.quote(str(folder).replace("%", "%%"))
  options = [
    "--job-name=prepare",
    f"--array=1-{jobs}",
    "--ntasks=1",
    f"--cpus-per-task={executor.cores}",
    "--mem-per-cpu=2G",
    "--time=24:00:00",
    "--requeue",
    f"--output={output}/%a.log",
    *executor.options,
  ]
  lines = [f"#SBATCH {option}" for option in options]
  python = shlex.join([sys.executable, "-P", "-m", "data.prepare"])
  request = f'{shlex.quote(str(folder))}/"$SLURM_ARRAY_TASK_ID".request'
  commands = [
    "set -euo pipefail",
    f"cd {shlex.quote(os.getcwd())}",
    # A site may let no variable of this process through.
    f"export PYTHONPATH={shlex.quote(os.environ.get('PYTHONPATH', ''))}",
    f"exec {python} < {request}",
  ]
  return "\n".join(["#!/bin/bash", *lines, *commands, ""])


def pack_all(
  dataset: Any,
  directory: Path,
  shards: int,
  *,
  workers: int | None,
  show: Callable[[], None],
) -> None:
  """Queues the jobs, and waits until all have ended; some shards may be missing then.

  Args:
    dataset: the TextDataset.
    directory: the folder of the shards, which all nodes see.
    shards: their number.
    workers: number of processes of each job; None is one per core.
    show: called a few times a second.

  Raises:
    CorpusError: a job found a wrong document.
    PreparationError: SLURM is not here, takes no job, or a job failed.
  """
  executor: executors.Slurm = dataset.executor
  if shutil.which("sbatch") is None:
    raise PreparationError(
      "executors.Slurm needs sbatch, which is not here. Start this on a login node of a cluster"
      " with SLURM, or choose another executor."
    )
  folder = directory.with_name(f"{directory.name.removesuffix('.shards')}.jobs")
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  jobs = min(executor.jobs, shards)
  there = dataclasses.replace(dataset, executor=executors.Local())
  for number in range(1, jobs + 1):
    request = {"datasets": [there], "workers": workers, "part": (number, jobs)}
    (folder / f"{number}.request").write_bytes(pickle.dumps(request))
  (folder / _SCRIPT).write_text(script(executor, folder, jobs), encoding="utf-8")
  status = _submitted(folder / _SCRIPT, show)
  for number in range(1, jobs + 1):
    if answer := _error(folder / f"{number}.log"):
      if answer.get("kind") == "CorpusError":
        raise CorpusError(answer["error"])
      raise PreparationError(f"SLURM job {number} of {jobs}: {answer['error']}")
  if status:
    raise PreparationError(
      f"{plural(jobs, 'SLURM job')} ended with exit status {status}; what they said is in"
      f" {folder}. Finished shards are kept: correct that, and start again."
    )
  shutil.rmtree(folder, ignore_errors=True)


def _submitted(file: Path, show: Callable[[], None]) -> int:
  """Queues a script and waits for its jobs; returns their worst exit status."""
  # The temporary folder of this process is none of another node's.
  environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
  process = subprocess.Popen(
    ["sbatch", "--parsable", "--wait", str(file)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=environment,
    start_new_session=True,  # Ctrl-C in a terminal is for this process, which then cancels.
  )
  assert process.stdout is not None
  assert process.stderr is not None
  job = ""
  try:
    job = process.stdout.readline().strip().partition(";")[0]
    if not job:
      said = " ".join(process.stderr.read().split())[:300]
      raise PreparationError(
        f"SLURM took no job: {said}. Correct executors.Slurm.options, or {file}."
      )
    while True:
      with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_SECONDS_BETWEEN_LOOKS)
      show()
  except BaseException as error:
    # If the calling command was killed, the jobs go on.
    if job and not isinstance(error, BrokenPipeError):
      _cancel(job)
    process.kill()
    process.wait()
    raise


def _cancel(job: str) -> None:
  """Ends the jobs of an array, also those that run on other nodes."""
  # Ctrl-C is followed by the calling command's SIGTERM: neither may end this, nor scancel.
  numbers = (signal.SIGINT, signal.SIGTERM)
  before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
  with contextlib.suppress(OSError):
    subprocess.Popen(["scancel", job], start_new_session=True).wait()
  for number, handler in zip(numbers, before, strict=True):
    signal.signal(number, handler)


def _error(log: Path) -> dict[str, Any] | None:
  """Returns the last event of a job's output if it says that the job failed."""
  with contextlib.suppress(OSError):
    for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
      with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict):
          return event if "error" in event else None
  return None
