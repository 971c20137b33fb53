"""Tells Orbax's errors apart: damaged files, and reads or writes that failed this time."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from base.small_files import PASSING

T = TypeVar("T")

_TRIES = 3
_PAUSE_SECONDS = 1.0
_SHOWN = 200
# In TensorStore's words.
_PASSING_WORDS = re.compile(
  "Input/output error|Cannot allocate memory|[Oo]ut of memory|RESOURCE_EXHAUSTED|Too many open "
  "files|"
  "Stale file handle|Resource temporarily unavailable|Connection (timed out|reset)|UNAVAILABLE|"
  "DEADLINE_EXCEEDED"
)
_REFUSED_WORDS = re.compile("Permission denied|PERMISSION_DENIED|Operation not permitted")
_OF_DISK = re.compile("|".join(os.strerror(number) for number in (
  errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES, errno.ENOMEM
)))  # fmt: skip
_FULL = re.compile("|".join(os.strerror(number) for number in (
  errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES
)))  # fmt: skip
# Errors of the program, such as a missing part of Orbax.
_REFUSALS = (ImportError, NotImplementedError, NameError, PermissionError, RecursionError)


# Errors of readers of JSON and of arrays for invalid contents and missing files.
_OF_CONTENTS = (
  FileNotFoundError, NotADirectoryError, IsADirectoryError, EOFError, ValueError, LookupError,
  TypeError,
  AttributeError,
)  # fmt: skip


class Damage(Exception):
  """A checkpoint differs from what was saved."""


class Refusal(Exception):
  """A checkpoint could not be read, for another reason than its files."""


def attempt(read: Callable[[], T]) -> T:
  """Calls a function of Orbax; tries again if the machine or the storage failed.

  Raises:
    Damage: the files differ from what was written.
    Refusal: they could not be read; the message has Orbax's log.
  """
  _hush_what_comes_late()
  for number in range(1, _TRIES + 1):
    with quiet() as logged:
      try:
        return read()
      except Exception as error:  # Orbax, TensorStore and the file system each have their own
        found, passing = _judge(error, logged)
        if not passing or number == _TRIES:
          raise found from error
    time.sleep(_PAUSE_SECONDS)
  raise AssertionError


def _judge(error: BaseException, logged: list[str]) -> tuple[Damage | Refusal, bool]:
  """Classifies an error of Orbax by its log; returns it and whether trying again may help."""
  causes = list(_causes(error))
  words = "\n".join([*map(str, causes), *logged])
  passing = any(
    isinstance(cause, MemoryError | TimeoutError)
    or (isinstance(cause, OSError) and cause.errno in PASSING)
    for cause in causes
  ) or bool(_PASSING_WORDS.search(words))
  refused = any(isinstance(cause, _REFUSALS) for cause in causes) or _REFUSED_WORDS.search(words)
  # Damage was reported where it was found.
  reason = str(error) if isinstance(error, Damage) else _line(causes[-1])
  if not passing and not refused and _is_of_contents(causes[-1]):
    return Damage(reason), False
  heard = f"; Orbax logged: {_telling(logged)}" if logged else ""
  return Refusal(f"{reason}{heard}"), passing and not refused


def _is_of_contents(error: BaseException) -> bool:
  """Whether an error means that files are missing or have other contents than were written."""
  return isinstance(error, (Damage, *_OF_CONTENTS))


def _telling(logged: list[str]) -> str:
  """Returns the logged line with the reason, else the last one, shortened."""
  for line in logged:
    said = _PASSING_WORDS.search(line) or _REFUSED_WORDS.search(line)
    if said:
      return line[max(0, said.end() - _SHOWN) :][:_SHOWN]
  return logged[-1][:_SHOWN]


def is_full(error: BaseException) -> bool:
  """Whether writing failed because the disk is full or read-only, so that waiting is no help."""
  said = _FULL.search("\n".join(map(str, _causes(error))))
  return said is not None


def reason(error: BaseException) -> str:
  """Returns why files could not be written, in the system's words if it has any."""
  causes = list(_causes(error))
  said = _OF_DISK.search("\n".join(map(str, causes)))
  return said[0] if said else _line(causes[-1])


def _causes(error: BaseException) -> Iterator[BaseException]:
  """Lists an error and its causes, the root cause last: Orbax wraps them deeply."""
  seen: set[int] = set()
  found: BaseException | None = error
  while found is not None and id(found) not in seen:
    seen.add(id(found))
    yield found
    found = found.__cause__


def _line(error: BaseException) -> str:
  return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:_SHOWN]}"


class _Heard(logging.Handler):
  def __init__(self):
    super().__init__(logging.WARNING)
    self.lines: list[str] = []

  def emit(self, record: logging.LogRecord) -> None:
    text = record.getMessage()
    if record.exc_info and record.exc_info[1]:
      text += f" ({_line(record.exc_info[1])})"
    self.lines.append(" ".join(text.split()))


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
  """Collects Orbax's log instead of printing it, so that errors are one line.

  Also silences exceptions that TensorStore's threads print, but not those of the main thread.
  """
  loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
  before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
  heard = _Heard()
  hooks = sys.excepthook, sys.unraisablehook, threading.excepthook

  try:
    sys.excepthook, sys.unraisablehook, threading.excepthook = map(_in_main_thread, hooks)
    for logger in loggers:
      logger.handlers, logger.propagate = [heard], False
      logger.setLevel(logging.WARNING)
    yield heard.lines
  finally:
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
      logger.handlers, logger.propagate = handlers, propagate
      logger.setLevel(level)


def _in_main_thread(hook: Callable[..., object]) -> Callable[..., None]:
  """Wraps a hook for exceptions so that it ignores those of other threads."""

  def call(*args: Any) -> None:
    if threading.current_thread() is threading.main_thread():
      hook(*args)

  return call


@functools.cache
def _hush_what_comes_late() -> None:
  """Silences reads that were under way when another failed, for good: Orbax does not await them.

  They would print tracebacks at any later time: their threads about a closed event loop, and the
  garbage collector about coroutines and results that nobody awaited.
  """
  sys.excepthook = _but_of_reads(sys.excepthook)
  sys.unraisablehook = _but_of_reads(sys.unraisablehook)
  logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.msg)
  warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)


def _but_of_reads(hook: Callable[..., object]) -> Callable[..., None]:
  """Wraps a hook for exceptions so that it ignores those of coroutines and of their threads."""

  def call(*args: Any) -> None:
    # sys.excepthook has the type, the exception and its traceback.
    unraisable = None if len(args) == 3 else args[0]
    error = args[1] if len(args) == 3 else args[0].exc_value
    in_thread = threading.current_thread() is not threading.main_thread()
    if in_thread and "Event loop is closed" in str(error):
      return
    # Only Orbax has coroutines here.
    if unraisable is None or not inspect.iscoroutine(unraisable.object):
      hook(*args)

  return call
