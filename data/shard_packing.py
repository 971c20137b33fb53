"""Packs one shard of rows, in any process of any machine that sees the folder."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from base import small_files
from data import shard_plan, verification
from data.files import CorpusError
from data.manifest import ArrayFile, Counts, Shard
from data.packing import Packer
from data.rows import TOKENS, RowWriter
from data.shard_plan import Task
from data.tokenizers import TokenizerError

# In a finished shard, until the manifest is written.
_DONE_FILE = "shard.json"
_PROGRESS_FILE = "progress.json"
_SECONDS_BETWEEN_REPORTS = 0.3


class TaskError(Exception):
  """What a task failed of, as text: a process cannot send every exception of a library."""


@dataclasses.dataclass(frozen=True)
class Packed:
  """A finished shard.

  Attributes:
    shard: its folder, rows and counts.
    files: the array files by name.
    entries: for each file, what `verification` records of it.
  """

  shard: Shard
  files: dict[str, ArrayFile]
  entries: dict[str, dict[str, Any]]


def machine() -> str:
  """Identifies this machine, also among containers with the same name."""
  try:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
  except OSError:
    boot = "0"
  return f"{socket.gethostname()}-{boot}"


def folder_name(number: int) -> str:
  """Returns the folder of a shard."""
  return f"shard-{number:05}"


def pack(dataset: Any, task: Task, number: int, directory: Path) -> None:
  """Packs the rows of a task into `directory`/shard-NNNNN, unless they are there.

  The folder appears completely or not at all, so that the process may be killed, and two processes
  may do the same: the first to finish wins.

  Args:
    dataset: the TextDataset.
    task: the parts to read.
    number: number of the shard.
    directory: an existing folder.

  Raises:
    CorpusError, TokenizerError: a document cannot be read.
    TaskError: it failed for another reason.
  """
  try:
    _pack(dataset, task, number, directory)
  except (CorpusError, TokenizerError):
    raise
  except Exception as error:
    said = " ".join(str(error).split())[:200]
    raise TaskError(f"{type(error).__name__}: {said}") from error


def _pack(dataset: Any, task: Task, number: int, directory: Path) -> None:
  target = directory / folder_name(number)
  if (target / _DONE_FILE).is_file():
    return
  start = f".{target.name}.{machine()}"
  for leftover in directory.glob(f"{glob.escape(start)}.*.partial"):
    if not _alive(leftover.name.split(".")[-2]):
      shutil.rmtree(leftover, ignore_errors=True)
  partial = directory / f"{start}.{os.getpid()}.partial"
  shutil.rmtree(partial, ignore_errors=True)  # Of an earlier process of this number.
  partial.mkdir()
  try:
    _write(dataset, task, target.name, partial)
    partial.rename(target)
  except OSError:
    if not (target / _DONE_FILE).is_file():
      raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _alive(process: str) -> bool:
  """Whether a process of this machine still runs."""
  try:
    status = Path("/proc", process, "stat").read_text(encoding="ascii", errors="replace")
  except OSError:
    return False
  return status.rpartition(")")[2].split()[0] not in ("Z", "X")  # not only waits to be reaped


def _write(dataset: Any, task: Task, name: str, folder: Path) -> None:
  packer = Packer(dataset.vocabulary, dataset.sequence_length, whole=dataset.whole_documents)
  masked = getattr(dataset.corpus, "has_loss_mask", False)
  writer = RowWriter(folder, dataset.vocabulary, dataset.sequence_length, masked=masked)
  reported = time.monotonic()
  for example in shard_plan.examples(dataset, task):
    for rows in packer.add(*example):
      writer.write(*rows)
    if time.monotonic() - reported >= _SECONDS_BETWEEN_REPORTS:
      reported = time.monotonic()
      small_files.replace(
        folder / _PROGRESS_FILE, json.dumps(dataclasses.asdict(packer.counts)), durable=False
      )
  writer.write(*packer.finish())
  (folder / _PROGRESS_FILE).unlink(missing_ok=True)
  files = writer.finish_shard()
  done = {
    "rows": files[TOKENS].shape[0],
    "counts": dataclasses.asdict(packer.counts),
    "files": {file: dataclasses.asdict(array) for file, array in files.items()},
    "entries": {n: verification.entry(folder / n, array.sha256) for n, array in files.items()},
  }
  (folder / _DONE_FILE).write_text(json.dumps(done), encoding="utf-8")


def present(directory: Path, numbers: Iterable[int]) -> list[int]:
  """Returns which shards have a folder, by one look at a file system that may be far."""
  with contextlib.suppress(FileNotFoundError):  # Another process has joined the shards.
    names = set(os.listdir(directory))
    return [number for number in numbers if folder_name(number) in names]
  return []


def finished(directory: Path, number: int) -> Packed | None:
  """Returns a shard of `directory` that is complete; None if it is not."""
  name = folder_name(number)
  try:
    values = json.loads((directory / name / _DONE_FILE).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  files = {
    n: ArrayFile(f["dtype"], tuple(f["shape"]), f["sha256"]) for n, f in values["files"].items()
  }
  return Packed(Shard(name, values["rows"], Counts(**values["counts"])), files, values["entries"])


def remove_marks(directory: Path) -> None:
  """Removes the files that only a preparation needs."""
  for mark in directory.glob(f"shard-*/{_DONE_FILE}"):
    mark.unlink(missing_ok=True)
  for leftover in directory.glob(".shard-*.partial"):
    shutil.rmtree(leftover, ignore_errors=True)


def in_progress(directory: Path) -> Iterator[Counts]:
  """Yields the counts so far of the shards that are being packed."""
  for file in directory.glob(f".shard-*.partial/{_PROGRESS_FILE}"):
    with contextlib.suppress(OSError, ValueError, TypeError):
      yield Counts(**json.loads(file.read_text(encoding="utf-8")))
