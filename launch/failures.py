"""Turns failures that a user can fix into a few short lines."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

from base import paths
from base.errors import is_out_of_memory

LONGEST_LINE = 480
MOST_LINES = 40

# Error texts of disks: TensorStore and numpy drop the number.
_DISK = {
  os.strerror(number): number
  for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
}
_REMEDIES = {
  errno.ENOSPC: "Free some space, or use another disk",
  errno.EDQUOT: "Free some space, or use another disk",
  errno.EFBIG: "Raise the limit on file sizes (ulimit -f)",
  errno.EROFS: "Use a writable folder",
  errno.EACCES: "Use a folder that you may write to, or change its permissions",
  errno.ELOOP: "The path's links form a circle: use another path",
  errno.ENOTDIR: "A part of the path is not a folder: use another path",
  errno.ENAMETOOLONG: "Use a shorter path",
}


_LESS_MEMORY = (
  "Use smaller batches (--gin.BATCH_SIZE or more --gin.MICROBATCHES; --batch_size of "
  "launch.evaluate) or shorter rows (--gin.SEQUENCE_LENGTH; --length). "
  "launch.train ... --dry_run prints the memory of a step."
)

# Failures that may pass, such as a file server that does not answer: starting again may help.
_PASSING = {
  errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED,
  errno.ECONNABORTED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EAGAIN,
  errno.ENOMEM, errno.EBUSY, errno.EPIPE,
}  # fmt: skip


def may_pass(error: BaseException) -> bool:
  """Whether starting the same command again may help."""
  if isinstance(error, OSError):
    return error.errno in _PASSING
  return bool(getattr(error, "may_pass", False))


def clipped(text: str) -> str:
  """Clips a text for a terminal: no control characters, few lines of limited length."""
  lines = [_clipped_line(line) for line in text.split("\n")]
  if len(lines) > MOST_LINES:
    kept = MOST_LINES // 2
    left_out = len(lines) - 2 * kept
    lines = [*lines[:kept], f"  ... {left_out} more lines ...", *lines[-kept:]]
  return "\n".join(lines)


def _clipped_line(line: str) -> str:
  """Cuts the middle out of a line with more than `LONGEST_LINE` characters."""
  if len(line) > LONGEST_LINE:
    start = LONGEST_LINE * 2 // 3
    line = f"{line[:start]} ... {line[start + 5 - LONGEST_LINE :]}"
  if line.isprintable():
    return line
  shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
  return shown if len(shown) <= LONGEST_LINE else _clipped_line(shown)


def of_system(error: BaseException) -> str | None:
  """Describes an error of the machine in one line; None for other errors."""
  if isinstance(error, ImportError) and (package := _missing_package(error)):
    return (
      f"{sys.executable} has no package {package!r}. Activate the environment that `make install` "
      "made (source .venv/bin/activate, in this repository's checkout), or install the package."
    )
  if _is_of_backend(error):
    platforms = os.environ.get("JAX_PLATFORMS")
    given = f"JAX_PLATFORMS={platforms}: " if platforms else ""
    return (
      f"{given}JAX finds no such device ({_first_line(error) or type(error).__name__}). "
      "Unset JAX_PLATFORMS, or set JAX_PLATFORMS=cpu."
    )
  if is_out_of_memory(error) and not any(says in str(error) for says in _DISK):
    return f"not enough memory ({_most_telling(error)}). {_LESS_MEMORY}"
  if isinstance(error, UnicodeDecodeError | UnicodeEncodeError):
    return None
  number = error.errno if isinstance(error, OSError) else None
  if number is None or number not in _REMEDIES:
    number = next((n for says, n in _DISK.items() if says in str(error)), number)
  if isinstance(error, OSError) and error.filename is not None:
    file = error.filename2 if number in _DISK.values() and error.filename2 else error.filename
    says = error.strerror or type(error).__name__
    return _sentence(says, paths.shown(os.fsdecode(file)) if _is_path(file) else file, number)
  if number is not None and number in _DISK.values():
    return _sentence(os.strerror(number), _file_in(str(error)), number)
  if isinstance(error, OSError) and number is not None:
    return _sentence(os.strerror(number), None, number)
  return None


def _missing_package(error: ImportError) -> str | None:
  """Returns the name of a package that is not installed; None for a mistake in this project."""
  top = (error.name or "").partition(".")[0]
  # A module that is found has a path. Without gin, Python takes this project's gin/ for it.
  found = error.path is not None and not isinstance(error, ModuleNotFoundError)
  of_this_project = any((Path(__file__).parents[1] / top).glob("*.py"))
  return None if found or of_this_project else top


def _most_telling(error: BaseException) -> str:
  """Returns the first line of an allocator's message, with bytes as GB."""
  text = _first_line(error).partition("RESOURCE_EXHAUSTED: ")[2] or _first_line(error)
  return (
    re.sub(r"\b(\d{7,}) bytes\b", lambda found: _gigabytes(int(found[1])), text)[:200]
    or "MemoryError"
  )


def _gigabytes(count: int) -> str:
  return f"{count / 1e9:,.1f} GB"


def _sentence(says: str, subject: object, number: int | None) -> str:
  remedy = None if number is None else _REMEDIES.get(number)
  return says + (f": {subject}" if subject else "") + (f". {remedy}." if remedy else "")


def _is_path(file: object) -> bool:
  return isinstance(file, str | bytes | os.PathLike)


def _file_in(text: str) -> str | None:
  """Finds the file in a library's message."""
  found = re.search(r"[\"'](/[^\"'\n]+)[\"']", text)
  return found and paths.shown(found[1])


def _first_line(error: BaseException) -> str:
  return str(error).partition("\n")[0].strip().rstrip(".")


def _is_of_backend(error: BaseException) -> bool:
  """Whether JAX found no device of the requested kind; JAX has several messages for it."""
  if "jax" not in sys.modules or not isinstance(error, RuntimeError | AssertionError):
    return False
  if "nable to initialize backend" in str(error):
    return True
  try:
    sys.modules["jax"].devices()
  except (RuntimeError, AssertionError):
    return True
  return False
