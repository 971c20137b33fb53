"""Handles output that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
from typing import TextIO

# The status that a shell reports for SIGPIPE, as in `yes | head -1`.
READER_GONE = 141


def prepare() -> None:
  """Makes any text writable: characters that the terminal lacks become question marks."""
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if stream is None:  # closed by the caller
      setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    elif name == "stdout" and hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="replace")


def failure(error: OSError) -> int | None:
  """Reports an error that means that standard output cannot be written.

  Returns:
    the exit status; None for other errors.
  """
  if error.filename is not None:
    return None
  try:
    # What could not be written may still be waiting; without a buffer, only a try tells.
    sys.stdout.write("" if isinstance(error, BrokenPipeError) else "\n")
    sys.stdout.flush()
    if isinstance(error, BrokenPipeError) and _is_broken(sys.stdout):
      raise error
  except BrokenPipeError:
    _silence()
    return READER_GONE
  except OSError:
    return _lost(error)
  return None


def _is_broken(stream: TextIO) -> bool:
  """Whether the stream is a pipe without a reader; the broken pipe may be another, to a worker."""
  try:
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
  except (OSError, ValueError):
    return False


def finish(status: int) -> int:
  """Flushes the output; returns the exit status, which tells if that failed."""
  try:
    sys.stdout.flush()
  except BrokenPipeError:
    _silence()
    return READER_GONE
  except OSError as error:
    return _lost(error)
  with contextlib.suppress(OSError):
    sys.stderr.flush()
  return status


def _lost(error: OSError) -> int:
  reason = os.strerror(error.errno or errno.EIO)
  with contextlib.suppress(OSError):
    print(f"error: the output cannot be written: {reason}.", file=sys.stderr)
  _silence()
  return 2


def _silence() -> None:
  """Discards buffered and later output, which Python would write at exit."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):
      with contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere, stream.fileno())
