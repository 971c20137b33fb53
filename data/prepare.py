"""Makes row files: `python -m data.prepare`, the process that preparation.py starts.

Reads a pickled request from stdin, {"datasets": [...], "workers": ..., "part": ...}; writes a line
of JSON per event to stdout: progress, then `{"done": ...}` or `{"error": ...}`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import json
import os
import pickle
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from base import bucket_copies, buckets, remote_files
from base.wording import plural
from data import (
  corpora,
  executors,
  recall,
  registered_tasks,
  shard_packing,
  shard_plan,
  shard_workers,
  tasks,
  verification,
)
from data.dataset import RegisteredMixture, TextDataset
from data.manifest import MANIFEST_FILE, Counts
from data.packing import Packer
from data.preparation import PreparationError, local_rows, not_kept, upload_lock
from data.rows import RowWriter
from data.tokenizers import TokenizerError

_SECONDS_BETWEEN_EVENTS = 0.1
# Half-made files without a write for so long are leftovers.
_SECONDS_OF_NOBODY = 24 * 3600.0

Report = Callable[[dict[str, Any]], None]


def _lock(path: Path, wait: Callable[[], None]) -> IO[str]:
  """Locks a content, so that only one process of this machine at a time prepares it.

  Closing the file releases the lock, as does the end of the process.

  The others wait and then find the rows. The lock only saves repeated work: files appear by
  renaming a finished directory.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  file = path.open("a")
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    wait()
    fcntl.flock(file, fcntl.LOCK_EX)
  return file


@contextlib.contextmanager
def _keeping(dataset: TextDataset) -> Iterator[None]:
  """Turns errors of writing rows into PreparationError, apart from errors of reading text."""
  try:
    yield
  except BrokenPipeError:
    raise
  except OSError as error:
    raise not_kept(dataset, str(error.strerror or error)) from error


def _remove_leftovers(target: Path) -> None:
  """Removes leftovers of killed preparations of `target`; call with the lock held.

  Removes all of this machine, and old ones of other machines, which may share the directory but not
  the lock.
  """
  for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
    ours = leftover.name.startswith(f".{target.name}.{shard_packing.machine()}.")
    if ours or time.time() - _last_written(leftover) > _SECONDS_OF_NOBODY:
      shutil.rmtree(leftover, ignore_errors=True)


def _last_written(folder: Path) -> float:
  """Returns the time of the last write to the folder or a file in it.

  A folder's own time changes only with new files.
  """
  times = [0.0]
  for path in (folder, *folder.glob("*")):
    with contextlib.suppress(FileNotFoundError):  # Its process has finished and renamed it.
      times.append(path.stat().st_mtime)
  return max(times)


def prepare(
  dataset: TextDataset,
  report: Report,
  *,
  workers: int | None = None,
  part: tuple[int, int] | None = None,
) -> None:
  """Makes the row files of `dataset` if they are missing; they appear completely or not at all.

  Args:
    dataset: the dataset.
    report: called with progress.
    workers: number of processes; None is one per core.
    part: (i, n) packs only the shards i - 1, i - 1 + n, ..., for others to complete; a dataset of
      one shard belongs to part 1.

  Raises:
    CorpusError: the corpus cannot be read, changes meanwhile, or the split has no text.
    PreparationError: the files cannot be written.
  """
  if not dataset.is_prepared():
    report({"what": dataset.what, "reading": True})
  try:
    if part is not None:
      _prepare_part(dataset, report, workers, part)
    else:
      _prepare(dataset, report, workers)
  except BrokenPipeError:
    raise
  except OSError as error:
    told = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    raise corpora.CorpusError(
      f"{dataset.what} cannot be read: {' '.join(told.split())[:300]}. Correct that, and start "
      "again."
    ) from error


def _prepare_part(
  dataset: TextDataset, report: Report, workers: int | None, part: tuple[int, int]
) -> None:
  """Packs some of the shards without a lock, which not all file systems share."""
  if dataset.is_prepared():
    return
  if buckets.in_bucket(dataset.cache_path):
    raise not_kept(dataset, "parts are prepared in a folder that all hosts share, not in a bucket")
  if (shards := shard_plan.tasks(dataset)) is not None:
    first, apart = part
    numbers = range(first - 1, len(shards), apart)
    _pack_shards(dataset, dataset.source(), shards, report, workers, numbers)
  elif part[0] == 1:
    _prepare(dataset, report, workers)


def _prepare(dataset: TextDataset, report: Report, workers: int | None) -> None:
  target = dataset.cache_path
  if buckets.in_bucket(target):
    _prepare_in_bucket(dataset, target, report, workers)
    return
  with _keeping(dataset):
    lock = _lock(
      target.parent / f".{target.name}.lock",
      wait=lambda: report({"what": dataset.what, "waiting": True}),
    )
  with lock:
    if (target / MANIFEST_FILE).is_file():
      return
    source = dataset.source()
    if (shards := shard_plan.tasks(dataset)) is not None:
      try:
        _pack_shards(dataset, source, shards, report, workers)
      except (PreparationError, OSError):
        # Another machine, which has not this lock, may have been faster and joined the shards.
        if not (target / MANIFEST_FILE).is_file():
          raise
      return
    partial = target.parent / f".{target.name}.{shard_packing.machine()}.{os.getpid()}.partial"
    with _keeping(dataset):
      _remove_leftovers(target)
      partial.mkdir()
    try:
      _pack(dataset, partial, report)
      _require_unchanged(dataset, source)
      with _keeping(dataset):
        _publish(partial, target)
    finally:
      shutil.rmtree(partial, ignore_errors=True)


def shards_folder(dataset: TextDataset, shards: Sequence[shard_plan.Task] = ()) -> Path:
  """Returns the folder of the finished shards, kept when a preparation is killed."""
  target = dataset.cache_path
  return target.with_name(f".{target.name}{shard_plan.suffix(shards)}.shards")


def _pack_shards(
  dataset: TextDataset,
  source: dict[str, Any],
  shards: list[shard_plan.Task],
  report: Report,
  workers: int | None,
  numbers: Sequence[int] | None = None,
) -> None:
  """Packs in several processes; continues where a killed preparation ended."""
  folder = shards_folder(dataset, shards)
  total = shard_plan.expected_bytes(dataset)
  with _keeping(dataset):
    folder.mkdir(exist_ok=True, parents=True)
  latest = {}

  def show(counts: Counts) -> None:
    latest.update(_event(dataset, counts, total))
    report(dict(latest))

  shard_workers.pack_all(dataset, shards, folder, show, workers=workers, numbers=numbers)
  ours = range(len(shards)) if numbers is None else numbers
  made = [folder / shard_packing.folder_name(n) for n in ours]
  _require_unchanged(dataset, source, made, shards)
  if numbers is not None:
    report(latest | {"finished": True})
    return
  with _keeping(dataset):
    counts = shard_workers.join(dataset, source, len(shards), folder)
  _require_text(dataset, counts)
  with _keeping(dataset):
    _publish(folder, dataset.cache_path)
    shard_packing.remove_marks(dataset.cache_path)
  report(_event(dataset, counts, total) | {"finished": True})


def _require_unchanged(
  dataset: TextDataset,
  source: dict[str, Any],
  made: Sequence[Path] = (),
  shards: Sequence[shard_plan.Task] = (),
) -> None:
  """Raises CorpusError if the text is another than when `source` and `shards` were told.

  Then it removes the shards that were made, which are perhaps of both: they would be taken for
  finished ones once the text is again what it was.
  """
  remote_files.forget()
  plan = shard_plan.suffix(shards)
  if dataset.source() != source or (plan and shard_plan.tasks(dataset) != shards):
    for folder in made:
      shutil.rmtree(folder, ignore_errors=True)
    raise corpora.CorpusError(
      f"{dataset.what}: a file changed while it was read. Start again once nothing writes to it."
    )


def _prepare_in_bucket(
  dataset: TextDataset, target: Path, report: Report, workers: int | None
) -> None:
  """Makes rows in a folder of this machine and copies them; the manifest is the last.

  If two hosts do it at once, both write the same files.
  """
  with _keeping(dataset):
    if (target / MANIFEST_FILE).is_file():
      return
  made = local_rows(dataset)
  with _keeping(dataset):
    lock = _lock(upload_lock(made), wait=lambda: report({"what": dataset.what, "waiting": True}))
  with lock:
    if not (target / MANIFEST_FILE).is_file():
      _prepare(dataclasses.replace(dataset, cache_dir=str(made.parent)), report, workers)
      with _keeping(dataset):
        bucket_copies.upload(
          made, target, last=[MANIFEST_FILE], without=[verification.VERIFIED_FILE]
        )
    shutil.rmtree(made, ignore_errors=True)


def _publish(partial: Path, target: Path) -> None:
  """Renames `partial` to `target`; if another machine was faster, its files stay."""
  try:
    partial.rename(target)
  except OSError:
    if not (target / MANIFEST_FILE).is_file():
      raise


def _pack(dataset: TextDataset, directory: Path, report: Report) -> None:
  corpus = dataset.corpus
  total = shard_plan.expected_bytes(dataset)
  packer = Packer(dataset.vocabulary, dataset.sequence_length, whole=dataset.whole_documents)
  masked = getattr(corpus, "has_loss_mask", False)
  with _keeping(dataset):
    writer = RowWriter(directory, dataset.vocabulary, dataset.sequence_length, masked=masked)
  last_report = 0.0
  for example in tasks.examples(corpus, dataset.vocabulary, dataset.split):
    for rows in packer.add(*example):
      with _keeping(dataset):
        writer.write(*rows)
    if packer.counts.cut_documents and isinstance(corpus, recall.RecallTask):
      raise corpora.CorpusError(
        f"{dataset.what}: an example of {plural(len(example.tokens), 'token')} is split over rows"
        f" of {dataset.sequence_length}, which separates answer and context. Set"
        f" whole_documents=True and a sequence_length of at least {len(example.tokens)}."
      )
    if time.monotonic() - last_report >= _SECONDS_BETWEEN_EVENTS:
      last_report = time.monotonic()
      report(_event(dataset, packer.counts, total))
  with _keeping(dataset):
    writer.write(*packer.finish())
  counts = packer.counts
  _require_text(dataset, counts)
  source = dataset.source()
  with _keeping(dataset):
    verification.record(directory, writer.finish(source, counts))
  report(_event(dataset, counts, total) | {"finished": True})


def _require_text(dataset: TextDataset, counts: Counts) -> None:
  if not counts.documents:
    raise corpora.CorpusError(
      f"{dataset.what} has no text: {plural(counts.empty_documents, 'document')}, all empty."
      " Correct the corpus."
    )
  if counts.tokens == counts.unscored_tokens:
    raise corpora.CorpusError(
      f"{dataset.what} has no token in the loss, of {plural(counts.tokens, 'token')}. Correct the"
      " corpus."
    )
  if counts.text_bytes <= counts.unscored_bytes:
    raise corpora.CorpusError(
      f"{dataset.what}: its {plural(counts.tokens, 'token')} spell no bytes of text in the loss, so"
      " that there are no bits per byte. Correct the corpus, or take its tokenizer."
    )


def _event(dataset: TextDataset, counts: Counts, total: int) -> dict[str, Any]:
  return {
    "what": dataset.what,
    "documents": counts.documents + counts.empty_documents,
    "empty_documents": counts.empty_documents,
    "invalid_utf8_documents": counts.invalid_utf8_documents,
    "text_bytes": counts.text_bytes,
    "total_bytes": total,
    "reading": True,
    "elsewhere": not isinstance(dataset.executor, executors.Local),
  }


def _answer(request: dict[str, Any], report: Report) -> list[dict[str, float] | None]:
  """Prepares the request's datasets; returns for each registered mixture its rates, else None."""
  found: list[dict[str, float] | None] = []
  for dataset in request["datasets"]:
    rates, parts = None, [dataset]
    if isinstance(dataset, RegisteredMixture):
      rates = registered_tasks.mixture_rates(dataset.mixture, dataset.module)
      parts = dataset.parts(rates)
    found.append(rates)
    for one in parts:
      prepare(one, report, workers=request.get("workers"), part=request.get("part"))
  return found


def main() -> int:
  """Prepares the datasets that stdin names; returns the exit status."""
  events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
  # Keeps libraries' prints out of the events.
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

  def report(event: dict[str, Any]) -> None:
    print(json.dumps(event), file=events, flush=True)

  def stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)

  # So that a terminated preparation removes its files.
  signal.signal(signal.SIGTERM, stop)
  try:
    report({"done": _answer(pickle.load(sys.stdin.buffer), report)})
  except SystemExit as error:
    return cast(int, error.code)  # Raised by `stop`.
  except BrokenPipeError:
    return 1  # The calling process has ended.
  except Exception as error:
    traceback.print_exc()
    kind = type(error).__name__
    if isinstance(error, corpora.CorpusError | TokenizerError | remote_files.RemoteError):
      kind = "CorpusError"  # Subclasses too: the corpus or its tokenizer is at fault.
    report({"error": str(error), "kind": kind})
    return 1
  return 0


if __name__ == "__main__":
  status = main()
  sys.stderr.flush()
  # At an ordinary exit TensorFlow waits for its threads, for ever if documents are still being
  # read.
  os._exit(status)
