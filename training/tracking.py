"""Hands a run's metrics to its trackers, so that none of them can stop the run or slow it down.

Each tracker works in a thread, from a queue. A tracker that fails is tried again after a pause. The
user gets one warning about it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from base import buckets
from base.errors import UserError
from training.metric_writers import MetricWriter, OpenWriter

# Seconds until the same call is tried again.
PAUSES = (1.0, 10.0, 60.0)
# Calls that failed in a row, after all pauses, until a tracker is left alone.
MOST_FAILED = 3
# Calls that wait for a slow tracker; the oldest are dropped.
MOST_WAITING = 10_000
# Seconds that the end of a run waits for a tracker.
PATIENCE = 20.0

Call = Callable[[OpenWriter], None]


def require_installed(writers: Iterable[MetricWriter]) -> None:
  """Raises UserError if a tracker's packages are missing; the message names the extra."""
  for writer in writers:
    missing = [name for name in getattr(writer, "needs", ()) if not _is_installed(name)]
    if missing:
      kind, extra = type(writer).__name__, getattr(writer, "extra", "")
      how = getattr(writer, "install", f"make install EXTRAS={extra}")
      raise UserError(
        f"{kind} needs the package {missing[0]}, which is not installed. Install the extra "
        f"`{extra}` ({how}), or train without it: leave out gin/trackers/{extra}.gin."
      )


def _is_installed(name: str) -> bool:
  try:
    return importlib.util.find_spec(name) is not None
  except (ImportError, ValueError):
    return False


class Tracking:
  """The trackers of a run; methods return at once. Used as a context, it closes them.

  Calls before `open` are lost: only the first of several processes opens trackers.
  """

  def __init__(self):
    self._threads: list[_Thread] = []

  def __enter__(self) -> Tracking:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def open(
    self,
    writers: Iterable[MetricWriter],
    run_dir: Path,
    step: int,
    hyperparameters: Mapping[str, object] | None = None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
  ) -> None:
    """Starts the trackers.

    Args:
      writers: the trackers to open.
      run_dir, step: see `MetricWriter.open`.
      hyperparameters: values of the configuration by name.
      say: shows a warning.
    """
    for writer in writers:
      thread = _Thread(writer, run_dir, step, say)
      self._threads.append(thread)
      if hyperparameters:
        thread.put(_if_able("hyperparameters", dict(hyperparameters)))

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    """Hands the numbers of a step to all trackers; see `OpenWriter.write`."""
    values = dict(values)
    self._put(lambda writer: writer.write(step, values))

  def samples(self, step: int, texts: Mapping[str, str]) -> None:
    """Hands texts that the model wrote, by their prompts, to trackers that take them."""
    self._put(_if_able("samples", step, dict(texts)))

  def picture(self, step: int, file: Path) -> None:
    """Hands a picture, a PNG file, to trackers that take them; one in a bucket as a copy."""

    def call(writer: OpenWriter) -> None:
      with tempfile.TemporaryDirectory() as folder:
        local = file
        if buckets.in_bucket(file):
          local = Path(folder, file.name)
          local.write_bytes(file.read_bytes())
        _if_able("picture", step, local)(writer)

    self._put(call)

  def _put(self, call: Call) -> None:
    for thread in self._threads:
      thread.put(call)

  def close(self) -> None:
    """Closes the trackers: waits for them, but not for long."""
    for thread in self._threads:
      thread.stop()
    for thread in self._threads:
      thread.join()
    self._threads.clear()


def _if_able(method: str, *args: object) -> Call:
  """Makes a call of an optional method of an open writer: see `OpenTracker`."""

  def call(writer: OpenWriter) -> None:
    if hasattr(writer, method):
      getattr(writer, method)(*args)

  return call


class _Thread:
  """One tracker, and the calls that wait for it."""

  def __init__(self, writer: MetricWriter, run_dir: Path, step: int, say: Callable[[str], None]):
    self._name = type(writer).__name__
    self._open = lambda: writer.open(run_dir, step)
    self._say = say
    self._calls: deque[Call] = deque(maxlen=MOST_WAITING)
    self._changed = threading.Condition()
    self._ends = self._has_warned = False
    self._left = threading.Event()
    self._writer: OpenWriter | None = None
    # The tracker is opened even if nothing follows.
    self.put(lambda writer: None)
    self._thread = threading.Thread(target=self._work, name=f"tracker {self._name}", daemon=True)
    self._thread.start()

  def put(self, call: Call) -> None:
    """Adds a call."""
    with self._changed:
      if not self._left.is_set():
        self._calls.append(call)
        self._changed.notify()

  def stop(self) -> None:
    """Ends the thread after its last call."""
    with self._changed:
      self._ends = True
      self._changed.notify()

  def join(self) -> None:
    """Waits for the thread; it may be stuck in a call that never returns."""
    self._thread.join(PATIENCE)
    if self._thread.is_alive():
      self._left.set()
      self._warn(f"is not done after {PATIENCE:.0f} s; the run ends without it")

  def _work(self) -> None:
    failed = 0
    while not self._left.is_set():
      with self._changed:
        self._changed.wait_for(lambda: self._calls or self._ends)
        if not self._calls:
          break
        call = self._calls.popleft()
      failed = 0 if self._is_done(call) else failed + 1
      if failed >= MOST_FAILED or (failed and self._ends):
        self._left.set()
    if self._writer is not None:
      with contextlib.suppress(Exception, SystemExit):
        self._writer.close()

  def _is_done(self, call: Call) -> bool:
    """Makes a call, several times if it fails; returns whether it succeeded."""
    for pause in (*PAUSES, None):
      try:
        self._writer = self._writer or self._open()
        call(self._writer)
        return True
      except (Exception, SystemExit) as error:  # each tracker has its own
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        self._warn(f"failed ({told}); the run continues, and the tracker is tried again")
      with self._changed:
        if pause is None or self._changed.wait_for(lambda: self._ends, pause):
          break
    return False

  def _warn(self, what: str) -> None:
    if not self._has_warned:
      self._has_warned = True
      with contextlib.suppress(Exception):
        self._say(f"warning: {self._name} {what}")
