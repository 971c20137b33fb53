"""Reads and writes the owner in a lock file."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
import socket
import uuid
from pathlib import Path

from base import small_files


@dataclasses.dataclass(frozen=True)
class Owner:
  """The process that owns a directory.

  Attributes:
    host: name of its machine.
    machine: id of the machine's boot or container, within which process ids are comparable.
    pid: its process id.
    process_start: start of the process in kernel ticks, since ids are reused; '' if unknown.
    since: when it took the directory, for display.
    token: unique id of this ownership.
  """

  host: str
  machine: str
  pid: int
  process_start: str
  since: str
  token: str

  def is_gone(self) -> bool:
    """Whether the process certainly ended: it is of this machine and does not exist."""
    if self.machine != machine():
      return False
    try:
      os.kill(self.pid, 0)
    except ProcessLookupError:
      return True
    except (PermissionError, OverflowError):
      pass
    now = _process_start(self.pid)
    return now == "zombie" or bool(now and self.process_start and now != self.process_start)

  def as_json(self) -> str:
    """Formats the owner as the contents of a lock file."""
    return json.dumps(dataclasses.asdict(self))

  def __str__(self) -> str:
    return f"process {self.pid} on {self.host} since {self.since}"


def read(lock: Path) -> Owner | None:
  """Reads the owner in a lock file; None if it is missing or unreadable."""
  try:
    contents = small_files.read(lock)
  except (OSError, small_files.NotReadable):
    return None
  return None if contents is None else parsed(contents)


def parsed(contents: bytes) -> Owner | None:
  """Parses the contents of a lock file; None if they are invalid."""
  try:
    found = Owner(**json.loads(contents))
  except (ValueError, TypeError, RecursionError):
    return None
  # The token becomes a file name.
  whole = type(found.pid) is int and found.pid > 0 and re.fullmatch(r"\w{1,64}", str(found.token))
  return found if whole else None


def this_process() -> Owner:
  """Makes a new ownership of this process."""
  return Owner(
    host=socket.gethostname(),
    machine=machine(),
    pid=os.getpid(),
    process_start=_process_start(os.getpid()),
    since=datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    token=uuid.uuid4().hex,
  )


def machine() -> str:
  """Identifies the scope of process ids: host, boot and namespace."""
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):
    parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    parts.append(os.readlink("/proc/self/ns/pid"))
  return " ".join(parts)


def _process_start(pid: int) -> str:
  """Returns the start of a process in kernel ticks; 'zombie' if it ended, '' if unknown."""
  try:
    # The command's name, in brackets, may hold spaces and brackets.
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
  except OSError:
    return ""
  return "zombie" if fields[0] in "ZX" else fields[19]
