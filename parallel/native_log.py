"""Suppresses the C++ log of a lost connection, which one line about the lost host replaces.

JAX's client logs an error, a warning and a stack trace, and aborts, all before Python can print.
File descriptor 2 is therefore a pipe, from which a thread forwards lines; `sys.stderr` is
unchanged.
"""

from __future__ import annotations

import os
import re
import select
import sys
import threading
import time

# Longer than it takes to name the lost host, shorter than the delay of an abort.
_HELD_SECONDS = 5.0
_PIPE_BYTES = 2**20
# The first line of the log; later lines have no mark, and differ between versions of JAX.
_OF_LOST_CONNECTIONS = re.compile(
  rb"[EWF]\d{4} .*\b(coordination_service_agent|preemption_sync_manager|coordination_service)\.cc:"
  rb"|F\d{4} .*client\.h:\d+\] Terminating process"
)


class NativeLog:
  """Delays the C++ log after a lost connection for some seconds, from `__init__` to `close`."""

  def __init__(self) -> None:
    sys.stderr.flush()
    # Python's lines, and whether they go to a terminal, are unchanged.
    self._screen = os.dup(2)
    self._python = sys.stderr
    copy = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    sys.stderr = copy
    self._read, write = os.pipe()
    _enlarge(write)
    # A C++ thread may hold the GIL while it writes, so it must never wait for this reader.
    os.set_blocking(write, False)
    os.dup2(write, 2)
    os.close(write)
    self._held: list[bytes] = []
    self._thread = threading.Thread(target=self._pass_on, daemon=True, name="native log")
    self._thread.start()

  def write(self, line: str) -> None:
    """Writes a line to the screen at once."""
    os.write(self._screen, line.encode())

  def close(self) -> None:
    """Forwards everything, and restores file descriptor 2."""
    sys.stderr.flush()
    sys.stderr = self._python
    os.dup2(self._screen, 2)  # the pipe has no writer now
    self._thread.join(timeout=1)

  def _pass_on(self) -> None:
    rest, since = b"", 0.0
    while True:
      ready, _, _ = select.select([self._read], [], [], 1.0)
      read = os.read(self._read, 2**16) if ready else b""
      *lines, rest = (rest + read).split(b"\n")
      for line in lines:
        if self._held or _OF_LOST_CONNECTIONS.match(line):
          since = since if self._held else time.monotonic()
          self._held.append(line + b"\n")
        else:
          os.write(self._screen, line + b"\n")
      ended = bool(ready) and not read
      if self._held and (ended or time.monotonic() - since > _HELD_SECONDS):
        os.write(self._screen, b"".join(self._held))
        self._held.clear()
      if ended:
        os.write(self._screen, rest)
        return


def _enlarge(pipe: int) -> None:
  import fcntl

  try:
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
  except (AttributeError, OSError):
    return  # not Linux, or less is allowed
