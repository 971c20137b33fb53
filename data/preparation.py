"""Makes row files in another process, so that this one never imports TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pickle
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from base import buckets, commands, remote_files, temporary_folders
from base.errors import UserError
from base.wording import plural
from data import executors, heldout, packing, shard_plan
from data.files import CorpusError
from data.progress import PreparationProgress, ProgressBar

_ROOT = Path(__file__).resolve().parents[1]
# Rows that are made for a bucket.
_TO_UPLOAD = "cache/to_upload"

Show = Callable[[PreparationProgress], None]


class PreparationError(UserError, RuntimeError):
  """Row files could not be made, for another reason than the corpus.

  The message has the process's last messages.
  """


def _environment(temporary: str) -> dict[str, str]:
  """Returns the environment of the preparing process.

  It has this process's module path (for modules of registered tasks) and no accelerators, which
  this process needs: seqio imports both TensorFlow and JAX.

  Args:
    temporary: the folder for its temporary files.
  """
  paths = [str(_ROOT)] + [p or os.getcwd() for p in sys.path]
  return os.environ | {
    "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TMPDIR": temporary,
  }


def run(request: dict[str, Any], what: str, show: Show) -> Any:
  """Runs `python -m data.prepare` on `request` and returns its answer.

  Args:
    request: see prepare.main.
    what: name for the progress line until the first document.
    show: called about ten times a second.

  Raises:
    CorpusError: the corpus is at fault.
    PreparationError: preparation failed for another reason.
  """
  try:
    pickled = pickle.dumps(request)
  except Exception as error:
    raise PreparationError(
      f"{what} cannot be pickled for the process that prepares it: "
      f"{' '.join(str(error).split())[:200]}."
      " Define the classes of corpus and tokenizer at the top level of a module."
    ) from None
  # -P: a folder named `data` in the working directory must not hide this package.
  command = [sys.executable, "-P", "-m", "data.prepare"]
  with (
    tempfile.TemporaryFile() as log,
    # TensorFlow removes its files at an ordinary exit, which data/prepare.py does not make. A
    # worker may write for a moment longer than the process lives.
    temporary_folders.made("preparation-") as temporary,
  ):
    process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log,
      env=_environment(str(temporary)),
    )
    try:
      assert process.stdin is not None  # Both are pipes.
      assert process.stdout is not None
      process.stdin.write(pickled)
      process.stdin.close()
      answer = _follow(process.stdout, what, show)
      process.wait(timeout=30)
    except BrokenPipeError:
      answer = {}
    except subprocess.TimeoutExpired:
      pass  # It has answered, and only fails to exit.
    finally:
      # Also on Ctrl-C, so that no process or half-made file is left.
      if process.poll() is None:
        _stop(process)
    if "done" in answer:
      return answer["done"]
    if answer.get("kind") == "CorpusError":
      raise CorpusError(answer["error"])
    if answer.get("kind") == PreparationError.__name__:
      raise PreparationError(answer["error"])
    raise PreparationError(_explain(process.returncode, answer, log))


def _stop(process: subprocess.Popen[bytes]) -> None:
  process.terminate()
  try:
    process.wait(timeout=10)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()


def _events(stream: IO[bytes]) -> Iterator[dict[str, Any] | None]:
  """Yields events, and None for every half second without one."""
  lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

  def read() -> None:
    for line in stream:
      lines.put(line)
    lines.put(b"")

  threading.Thread(target=read, daemon=True).start()
  while True:
    try:
      line = lines.get(timeout=0.5)
    except queue.Empty:
      yield None
      continue
    if not line:
      return
    yield json.loads(line)


def _follow(stream: IO[bytes], what: str, show: Show) -> dict[str, Any]:
  """Shows events; returns the last, which has the outcome."""
  start = time.monotonic()
  latest = PreparationProgress(what)
  show(latest)
  for event in _events(stream):
    seconds = time.monotonic() - start
    if event is None:
      latest = dataclasses.replace(latest, seconds=seconds)
    elif "what" in event:
      latest = PreparationProgress(**event, seconds=seconds)
    else:
      return event
    show(latest)
  return {}


def _explain(returncode: int, answer: dict[str, Any], log: IO[bytes]) -> str:
  log.seek(0)
  if answer.get("kind", "").endswith("MemoryError"):
    said = " ".join(answer["error"].split())
    return f"preparing rows ran out of memory: {said}. Give shorter rows."
  tail = log.read().decode("utf-8", errors="replace").strip().splitlines()[-8:]
  reason = f"{answer['kind']}: {answer['error']}" if answer else f"exit status {returncode}"
  if returncode == -9:
    reason += " (killed, perhaps out of memory)"
  return f"Preparing rows failed with {reason}. Last messages:\n  " + "\n  ".join(tail)


def _check(dataset: Any) -> None:
  """Finds errors at once that the other process would find after seconds.

  Raises:
    CorpusError: the split is empty on purpose, or the beginning of a file is invalid.
    PreparationError: the rows do not fit into memory, or the cache is not writable.
  """
  heldout.check_intent(dataset.corpus, dataset.split)
  if hasattr(dataset.corpus, "check"):
    dataset.corpus.check()
  length = dataset.sequence_length
  needed, memory = packing.block_bytes(length), _memory()
  if needed > memory:
    fits = 2 ** ((length * memory // needed).bit_length() - 1)
    raise PreparationError(
      f"sequence_length={length} is too long: packing a row needs"
      f" {needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB. Give shorter rows"
      f" (--gin.SEQUENCE_LENGTH; --length of launch.evaluate), such as {fits}."
    )
  folder = dataset.cache_path.parent
  if buckets.in_bucket(folder):
    return
  there = next(path for path in (folder, *folder.parents) if path.exists())
  if not there.is_dir():
    raise not_kept(dataset, f"{there} is not a folder")
  if not os.access(there, os.W_OK | os.X_OK):
    raise not_kept(dataset, f"{there} is not writable")


def _memory() -> int:
  """Returns the bytes of memory of this machine."""
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def not_kept(dataset: Any, reason: str) -> PreparationError:
  """Makes the error for rows that cannot be written to the cache."""
  return PreparationError(
    f"the rows of {dataset.what} cannot be written to {dataset.cache_path.parent}: {reason}."
    " Correct that, or use another folder: --gin.dataset.TextDataset.cache_dir=FOLDER."
  )


def local_rows(dataset: Any) -> Path:
  """Returns the folder of this machine in which rows for a bucket are made."""
  return Path(_TO_UPLOAD).absolute() / dataset.cache_path.name


def upload_lock(made: Path) -> Path:
  """Returns the lock file of a process that makes and uploads these rows."""
  return made.with_name(f".{made.name}.upload.lock")


def _remove_uploaded(made: Path) -> None:
  """Removes what a killed process left of rows that are in the bucket by now."""
  if not made.exists():
    return
  with contextlib.suppress(OSError), upload_lock(made).open("a") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shutil.rmtree(made, ignore_errors=True)


# Megabytes of text that a core packs in a second, by the kind of tokenizer: docs/benchmarks.md. A
# tokenizer.json has 9 by `data.piece_cache`, and 2.5 by its library.
_RATES = {"bytes": 20.0, "sentencepiece": 4.0, "tokenizer.json": 5.0, "tiktoken": 3.0}
_TOLD_SECONDS = 60.0


def _tell_how_long(datasets: Sequence[Any], workers: int | None, own_command: bool) -> None:
  """Prints a line if the preparation will take minutes."""
  seconds, cores = 0.0, workers or len(os.sched_getaffinity(0))
  for dataset in datasets:
    if not isinstance(dataset.executor, executors.Local):
      continue  # Nobody knows how many cores it will get.
    rate = _RATES.get(dataset.vocabulary.describe()["kind"], 3.0) * 1e6
    shards = shard_plan.expected_shards(dataset)
    seconds += shard_plan.expected_bytes(dataset) / rate / min(cores, shards)
  if seconds < _TOLD_SECONDS:
    return
  hint = ""
  if not own_command:
    hint = (
      f"; {commands.line('prepare')} with the same gin files does it beforehand, elsewhere and on"
      " many machines"
    )
  print(
    f"preparing rows will take about {seconds / 60:,.0f} min on {plural(cores, 'core')}{hint}",
    file=sys.stderr,
  )


def prepare(
  datasets: Sequence[Any],
  progress: Show | None = None,
  *,
  workers: int | None = None,
  part: tuple[int, int] | None = None,
  own_command: bool = False,
) -> None:
  """Makes missing row files, by one other process and its workers.

  Args:
    datasets: TextDatasets and RegisteredMixtures.
    progress: called about ten times a second; by default a progress bar on stderr.
    workers: number of processes that pack; None is one per core.
    part: see `data.prepare.prepare`.
    own_command: whether the user asked for just this, and need not be told how to.
  """
  missing, unknown = [], []
  remote_files.forget()
  for dataset in datasets:
    parts = dataset.known_parts()
    if parts is None:
      unknown.append(dataset)  # Only the other process imports seqio, which knows its tasks.
      continue
    for one in parts:
      if not one.is_prepared():
        missing.append(one)
      elif buckets.in_bucket(one.cache_path):
        _remove_uploaded(local_rows(one))
  for dataset in missing:
    _check(dataset)
  if asked := [*missing, *unknown]:
    _tell_how_long(missing, workers, own_command)
    request = {"datasets": asked, "workers": workers, "part": part}
    found = run(request, asked[0].what, progress or ProgressBar())
    for dataset, rates in zip(asked, found, strict=True):
      if rates is not None:
        dataset.keep_rates(rates)
