"""The process that a directory belongs to, as its lock file names it."""

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
  """The process that a directory belongs to.

  Attributes:
    host: name of its machine.
    machine: tells apart boots of machines and containers of one name: only within one of them do
      process ids mean the same.
    pid: its process id.
    process_start: when the process started, as the kernel counts; '' if unknown. Ids are used
      again.
    since: when it took the directory, for people.
    token: of this one ownership alone.
  """

  host: str
  machine: str
  pid: int
  process_start: str
  since: str
  token: str

  def is_gone(self) -> bool:
    """Whether it surely runs no more: a process of this machine that does not exist."""
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
    """What a lock file holds."""
    return json.dumps(dataclasses.asdict(self))

  def __str__(self) -> str:
    return f"process {self.pid} on {self.host} since {self.since}"


def read(lock: Path) -> Owner | None:
  """The owner that a lock file names; None if there is none or it cannot be read."""
  try:
    contents = small_files.read(lock)
  except (OSError, small_files.NotReadable):
    return None
  return None if contents is None else parsed(contents)


def parsed(contents: bytes) -> Owner | None:
  """The owner in the contents of a lock file; None if they are none."""
  try:
    found = Owner(**json.loads(contents))
  except (ValueError, TypeError, RecursionError):
    return None
  # The token becomes a file's name.
  whole = type(found.pid) is int and found.pid > 0 and re.fullmatch(r"\w{1,64}", str(found.token))
  return found if whole else None


def this_process() -> Owner:
  """This process as an owner, of a new ownership."""
  return Owner(
    host=socket.gethostname(),
    machine=machine(),
    pid=os.getpid(),
    process_start=_process_start(os.getpid()),
    since=datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    token=uuid.uuid4().hex,
  )


def machine() -> str:
  """Where process ids mean the same: host, boot and namespace."""
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):
    parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    parts.append(os.readlink("/proc/self/ns/pid"))
  return " ".join(parts)


def _process_start(pid: int) -> str:
  """When a process started, in the kernel's ticks; 'zombie' if it has ended, '' if unknown."""
  try:
    # The command's name, in brackets, may hold spaces and brackets.
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
  except OSError:
    return ""
  return "zombie" if fields[0] in "ZX" else fields[19]
