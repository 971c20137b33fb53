"""What a command does where its output cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
from typing import TextIO

# What a shell reports of a program that SIGPIPE ended, as it ends `yes | head -1`.
READER_GONE = 141


def prepare() -> None:
  """Lets every text be written: a character that the terminal lacks becomes a question mark."""
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if stream is None:  # closed by who started the command
      setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    elif name == "stdout" and hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="replace")


def failure(error: OSError) -> int | None:
  """Tells that the standard output took no more, if that is what the error was.

  Returns:
    the exit status; None if the error was another.
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
  """Whether nobody reads a pipe any more; another pipe, to a worker say, may be the broken one."""
  try:
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
  except (OSError, ValueError):
    return False


def finish(status: int) -> int:
  """Writes what is still waiting; returns the exit status, which says if that failed."""
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
  """Sends what comes, and what is waiting, nowhere: Python writes it when it ends."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):
      with contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere, stream.fileno())
