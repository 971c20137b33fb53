"""Handles signals that stop a run."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Any

from parallel import coordination, processes

# A step may take a minute: its compilation, or a large model.
WAITS = (
  "stopping after the current step, which may have to be compiled first, and saving; Ctrl-C again "
  "ends at once without saving"
)


# What schedulers send before they end a job; SLURM's users often choose the second.
_PREEMPTIONS = (signal.SIGTERM, *filter(None, [getattr(signal, "SIGUSR1", None)]))


class Interruption:
  """Turns SIGTERM, SIGUSR1 and SIGINT into a request to stop after the current step.

  If one of several processes gets the signal, JAX's preemption service, which handles SIGTERM,
  chooses a step at which all stop; the others are passed on to it.
  """

  def __enter__(self) -> Interruption:
    self._requested: signal.Signals | None = None
    self._before = {}
    for number in (signal.SIGINT, *_PREEMPTIONS):
      if number == signal.SIGTERM and processes.count() > 1:
        continue  # the service's
      try:
        self._before[number] = signal.signal(number, self._request)
      except ValueError:  # not the main thread: only that can handle signals
        break
    return self

  def requested_at(self, step: int) -> bool:
    """Whether to stop after this step; the same answer on every process."""
    if processes.count() == 1:
      return self._requested is not None
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)

  @property
  def by(self) -> signal.Signals:
    """The signal that requested the stop, on any process; SIGTERM for SIGUSR1."""
    if processes.count() > 1:
      return signal.SIGINT if coordination.stop_reason() else signal.SIGTERM
    return self._requested or signal.SIGTERM

  def _request(self, number: int, frame: Any) -> None:
    del frame
    if self._requested and number == signal.SIGINT:
      raise KeyboardInterrupt  # requested twice
    self._requested = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
    if number == signal.SIGINT:
      _tell(WAITS)
    if processes.count() > 1 and number == signal.SIGINT:
      coordination.request_stop(self._requested.name)
    elif processes.count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)

  def __exit__(self, *error: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)


def _tell(line: str) -> None:
  """Writes a line to stderr, below a live line of progress; may interrupt another write."""
  # Not print: the handler may run inside a write to the same stream, which refuses a second one.
  with contextlib.suppress(OSError, ValueError):
    stream = sys.stderr.fileno()
    os.write(stream, f"{chr(10) if os.isatty(stream) else ''}{line}\n".encode())
