"""Packs shards as tasks of Ray."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import pickle
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data import shard_packing
from data.executors import Ray
from data.files import CorpusError
from data.preparation import PreparationError
from data.shard_plan import Task
from data.tokenizers import TokenizerError

_SECONDS_BETWEEN_LOOKS = 0.3
# Tasks return nothing: the least that Ray takes for its store of results.
_STORE_BYTES = 80 * 10**6


def _sent() -> Callable[[list[str], str, bytes], Exception | None]:
  """Returns the function of a task.

  Ray sends its code, because it is defined in a function: the processes of a cluster that was
  started elsewhere do not find this project until they know its path.
  """

  def run(paths: list[str], folder: str, pickled: bytes) -> Exception | None:
    import importlib
    import os
    import pickle
    import sys

    os.chdir(folder)
    # First: a folder named `data` in the working directory must not hide this project's.
    sys.path[:] = dict.fromkeys([*paths, *sys.path])
    # Each task has one core: the tokenizers library would start threads for all.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return importlib.import_module("data.ray_tasks").pack(*pickle.loads(pickled))

  return run


def pack(dataset: Any, task: Task, number: int, directory: Path) -> Exception | None:
  """Packs a shard in a worker; returns an error that another try would not mend."""
  try:
    shard_packing.pack(dataset, task, number, directory)
  except (CorpusError, TokenizerError) as error:
    return error
  return None


def _no_answer(address: str, error: Exception) -> PreparationError:
  return PreparationError(
    f"Ray does not answer at {address!r}: {' '.join(str(error).split())[:200]}. Set"
    " executors.Ray.address (or RAY_ADDRESS) to that of a cluster, or to 'local'; if the cluster"
    " asks for a token, set RAY_AUTH_MODE=token."
  )


def _require_answer(address: str) -> None:
  """Raises PreparationError if nothing listens at HOST:PORT, for which Ray would wait minutes."""
  host, _, port = address.rpartition(":")
  if host and port.isdecimal() and "/" not in host:
    try:
      socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
      raise _no_answer(address, error) from error


@contextlib.contextmanager
def _connected(executor: Ray, workers: int) -> Iterator[Any]:
  """Starts Ray on this machine, or connects to a cluster; yields the library."""
  if importlib.util.find_spec("ray") is None:
    raise PreparationError(
      "executors.Ray needs the extra 'ray': make install EXTRAS=ray (or pip install ray)."
    )
  address = executor.address or os.environ.get("RAY_ADDRESS") or "local"
  _require_answer(address)
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  import ray.exceptions  # pyright: ignore[reportMissingImports]

  quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
  try:
    if address == "local":
      ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        object_store_memory=_STORE_BYTES,
        **quiet,
      )
    else:
      ray.init(address=address, **quiet)
  except (ray.exceptions.RayError, ValueError, OSError, RuntimeError) as error:
    raise _no_answer(address, error) from error
  try:
    yield ray
  finally:
    ray.shutdown()


def pack_all(
  dataset: Any,
  tasks: Sequence[Task],
  directory: Path,
  waiting: Sequence[int],
  *,
  workers: int,
  most: int | None,
  tries: int,
  show: Callable[[], None],
) -> tuple[int, BaseException] | None:
  """Packs the shards `waiting`; Ray schedules the tasks and tries them again.

  Args:
    dataset: the TextDataset.
    tasks: the parts of each shard.
    directory: the folder of the shards, which all machines see.
    waiting: the shards to pack.
    workers: cores of this machine to use if Ray is started here.
    most: the most tasks at a time; None leaves it to Ray.
    tries: how often Ray starts a task that fails or whose process dies.
    show: called a few times a second.

  Returns:
    The shard of a task that failed for good, and its error; None if all are packed.
  """
  with _connected(dataset.executor, workers) as ray:
    remote = ray.remote(num_cpus=1, max_retries=tries - 1, retry_exceptions=True)(_sent())
    paths = [path or os.getcwd() for path in sys.path]
    left, running = list(waiting), {}
    while left or running:
      while left and (most is None or len(running) < most):
        number = left.pop(0)
        pickled = pickle.dumps((dataset, tasks[number], number, directory))
        task = remote.remote(paths, os.getcwd(), pickled)
        running[task] = number
      done, _ = ray.wait(list(running), timeout=_SECONDS_BETWEEN_LOOKS)
      show()
      for task in done:
        number = running.pop(task)
        try:
          error = ray.get(task)
        except ray.exceptions.RayTaskError as failed:
          error = failed.cause
        except ray.exceptions.RayError as lost:
          error = lost
        if error is not None:
          return number, error
  return None
