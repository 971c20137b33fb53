"""Packs the shards of a dataset, in processes of this machine or elsewhere, and joins them."""

from __future__ import annotations

import concurrent.futures as futures
import dataclasses
import errno
import multiprocessing
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from data import executors, ray_tasks, rows, shard_packing, slurm_jobs, verification
from data.files import CorpusError
from data.manifest import Counts, total
from data.preparation import PreparationError
from data.shard_plan import Task
from data.tokenizers import TokenizerError

# How often a task is tried that fails for another reason than the corpus, or whose process dies.
_TRIES = 3
_SECONDS_BETWEEN_LOOKS = 0.3
# Network file systems show another machine's folder after up to a minute.
_SECONDS_TO_SEE = 90.0

Report = Callable[[Counts], None]


def workers_here() -> int:
  """Returns the number of cores that this process may use."""
  return len(os.sched_getaffinity(0))


def _end_with(parent: int) -> None:
  """Ends this process soon after its parent's end, also if that was killed."""

  def watch() -> None:
    while os.getppid() == parent:
      time.sleep(0.5)
    os._exit(1)

  # Each process has one core: the tokenizers library would start threads for all.
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  threading.Thread(target=watch, daemon=True).start()


def pack_all(
  dataset: Any,
  tasks: Sequence[Task],
  directory: Path,
  report: Report,
  *,
  workers: int | None = None,
  numbers: Sequence[int] | None = None,
) -> None:
  """Packs the shards that `directory` lacks, each by one process, where `dataset.executor` says.

  Args:
    dataset: the TextDataset.
    tasks: the parts of each shard.
    directory: an existing folder; what others packed there is kept.
    report: called a few times a second with the counts so far.
    workers: number of processes; None is one per core (with SLURM: of each job).
    numbers: the shards to pack, in processes of this machine; None is all.

  Raises:
    CorpusError: a document cannot be read.
    PreparationError: a task failed several times; the message has its files.
  """
  wanted = range(len(tasks)) if numbers is None else numbers
  waiting = [n for n in wanted if shard_packing.finished(directory, n) is None]
  progress = _Progress(directory, len(tasks), report)
  tries: Counter[int] = Counter()
  if waiting and numbers is None and not isinstance(dataset.executor, executors.Local):
    _pack_elsewhere(dataset, tasks, directory, waiting, progress, workers)
    _require_here(directory, waiting)
    waiting = []
  while waiting:
    waiting = _pack_some(dataset, tasks, directory, waiting, tries, progress, workers)
  progress.show()


def _pack_elsewhere(
  dataset: Any,
  tasks: Sequence[Task],
  directory: Path,
  waiting: Sequence[int],
  progress: _Progress,
  workers: int | None,
) -> None:
  """Packs shards by another executor than the processes of this machine."""
  if isinstance(dataset.executor, executors.Slurm):
    slurm_jobs.pack_all(dataset, directory, len(tasks), workers=workers, show=progress.show)
  else:
    failed = ray_tasks.pack_all(
      dataset,
      tasks,
      directory,
      waiting,
      workers=workers or workers_here(),
      most=workers,
      tries=_TRIES,
      show=progress.show,
    )
    if failed:
      number, error = failed
      _count_failure(error, number, tasks, Counter({number: _TRIES - 1}))


def _require_here(directory: Path, numbers: Sequence[int]) -> None:
  """Waits until shards that other machines packed are seen here.

  Raises:
    PreparationError: one is not.
  """
  deadline = time.monotonic() + _SECONDS_TO_SEE
  for number in numbers:
    while shard_packing.finished(directory, number) is None:
      if time.monotonic() > deadline:
        raise PreparationError(
          f"shard {number} was packed on another machine, and is not in {directory}. Use a cache"
          " that all machines see: --gin.dataset.TextDataset.cache_dir=FOLDER."
        )
      time.sleep(_SECONDS_BETWEEN_LOOKS)


def _pack_some(
  dataset: Any,
  tasks: Sequence[Task],
  directory: Path,
  waiting: list[int],
  tries: Counter[int],
  progress: _Progress,
  workers: int | None,
) -> list[int]:
  """Packs shards until all are done or a process dies; returns those that are missing."""
  count = min(workers or workers_here(), len(waiting))
  pool = futures.ProcessPoolExecutor(
    count,
    # Not forked: the libraries' threads would be missing in a copy of this process.
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_end_with,
    initargs=(os.getpid(),),
  )
  left, running = list(waiting), {}
  try:
    while left or running:
      # No more than run at once, so that it is known what ran when a process dies.
      while left and len(running) < count:
        number = left.pop(0)
        task = pool.submit(shard_packing.pack, dataset, tasks[number], number, directory)
        running[task] = number
      done, _ = futures.wait(
        running, timeout=_SECONDS_BETWEEN_LOOKS, return_when=futures.FIRST_COMPLETED
      )
      for task in done:
        number = running[task]
        error = task.exception()
        if isinstance(error, BrokenProcessPool):
          raise error
        del running[task]
        if error is not None:
          left.append(number)
          _count_failure(error, number, tasks, tries)
      progress.show()
  except BrokenProcessPool as error:
    for number in running.values():
      if shard_packing.finished(directory, number) is None:
        _count_failure(error, number, tasks, tries)
    missing = [n for n in waiting if shard_packing.finished(directory, n) is None]
    # Last those that may end their process again.
    return sorted(missing, key=lambda n: tries[n])
  finally:
    # After a failure nobody waits for what still runs: it ends with this process.
    pool.shutdown(wait=not running, cancel_futures=True)
  return []


def _count_failure(
  error: BaseException, number: int, tasks: Sequence[Task], tries: Counter[int]
) -> None:
  """Raises the error of a task that is not worth another try."""
  if isinstance(error, CorpusError | TokenizerError):
    raise error
  tries[number] += 1
  if tries[number] < _TRIES:
    return
  if isinstance(error, BrokenProcessPool) or type(error).__name__ == "WorkerCrashedError":
    said = "its process was ended, perhaps for lack of memory"
  elif isinstance(error, shard_packing.TaskError):
    said = str(error)
  else:
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
  first, *others = tasks[number]
  more = f" and {len(others)} more" if others else ""
  raise PreparationError(
    f"shard {number} of {len(tasks)} ({first}{more}) failed {_TRIES} times: {said}. The other"
    " shards are kept: correct that, and start again."
  ) from error


class _Progress:
  """Adds up the counts of all shards."""

  def __init__(self, directory: Path, shards: int, report: Report):
    self._directory = directory
    self._report = report
    self._missing = set(range(shards))
    self._done: list[Counts] = []

  def show(self) -> None:
    for number in shard_packing.present(self._directory, sorted(self._missing)):
      if packed := shard_packing.finished(self._directory, number):
        self._missing.remove(number)
        self._done.append(packed.shard.counts)
    self._done = [total(self._done)]
    self._report(total([*self._done, *shard_packing.in_progress(self._directory)]))


def join(dataset: Any, source: dict[str, Any], count: int, directory: Path) -> Counts:
  """Writes the manifest of packed shards; returns their counts.

  Args:
    dataset: the TextDataset.
    source: its source.
    count: number of shards, all finished.
    directory: the folder.

  Raises:
    OSError: shards are gone, or the manifest cannot be written.
  """
  packed = [shard_packing.finished(directory, number) for number in range(count)]
  shards = [one for one in packed if one is not None]
  if len(shards) != count:
    raise FileNotFoundError(errno.ENOENT, "another process removed shards", str(directory))
  for stray in directory.glob("shard-*"):
    if stray.name not in {one.shard.folder for one in shards}:
      shutil.rmtree(stray)
  files = {one.shard.path(n): file for one in shards for n, file in one.files.items()}
  entries = {one.shard.path(n): entry for one in shards for n, entry in one.entries.items()}
  counts = total(one.shard.counts for one in shards)
  if counts.documents:
    rows.write_manifest(
      directory,
      dataset.vocabulary,
      source=source,
      sequence_length=dataset.sequence_length,
      rows=sum(one.shard.rows for one in shards),
      counts=dataclasses.replace(counts),
      files=files,
      listed=tuple(one.shard for one in shards),
    )
    verification.record_entries(directory, entries)
  return counts
