"""How the processes of one program find each other at its start: who they are, and a wait for
process 0.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from base.errors import UserError

# A wait says so after this long without a word, and again after each longer time.
TOLD_AFTER_SECONDS = 5
TOLD_EVERY_SECONDS = 10
# What process 0 says first, and what it says when all have come.
_GREETING = b"griffin: who comes?\n"
_GO = b"all have come\n"
_LONGEST_LINE = 300
_MOST_AT_ONCE = 1024
# So many missing processes are named.
_SHOWN = 8
# For so long something else may listen at the address: a program that is about to end.
_STRANGER_SECONDS = 8


class HostError(UserError):
  """The processes cannot work together: one is missing, or differs.

  Attributes:
    may_pass: whether another start may find them together.
  """


class Waiting:
  """Tells every few seconds for whom this process waits, while it is entered."""

  def __init__(self, whom: Callable[[], str]):
    """`whom`: gives such as 'process 0 of 2 at host0:1234'."""
    self._whom = whom
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._tell, daemon=True, name="waiting")

  def __enter__(self) -> None:
    self._thread.start()

  def __exit__(self, *error: object) -> None:
    self._stopped.set()
    self._thread.join()

  def _tell(self) -> None:
    began, pause = time.monotonic(), TOLD_AFTER_SECONDS
    while not self._stopped.wait(pause):
      seconds = time.monotonic() - began
      print(f"waiting for {self._whom()} ({seconds:.0f} s)", file=sys.stderr, flush=True)
      pause = TOLD_EVERY_SECONDS


def of_cluster(seconds: int) -> tuple[str, int, int, Any]:
  """Address of process 0, number of processes, which this is, and its devices, as the cluster says.

  Raises:
    HostError: the cluster does not say.
  """
  from jax._src import clusters

  found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
    os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, seconds
  )
  address, count, index, devices = found
  if address is None or count is None or index is None:
    raise HostError(
      "neither SLURM, Kubernetes nor a TPU's service says who the other processes are."
    )
  if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
    # Said by the user; a cluster knows only one device a process. JAX reads it where none are
    # passed.
    devices = None
  return address, count, index, devices


def receive(coordinator: str, count: int, seconds: int) -> None:
  """In process 0: returns once every other process has come to `come_to`.

  JAX's service does not tell one program from another: a process that comes twice, or of another
  program, makes it end all that work with it. So the processes meet at its port before it listens
  there.

  Raises:
    HostError: the port is in use, or some do not come.
  """
  guests: dict[int, socket.socket] = {}

  def missing() -> str:
    numbers = [str(process) for process in range(1, count) if process not in guests]
    shown = ", ".join(numbers[:_SHOWN]) + (", ..." if len(numbers) > _SHOWN else "")
    return f"process{'es' if len(numbers) > 1 else ''} {shown}"

  end = time.monotonic() + seconds
  with _listen(coordinator) as server, Waiting(lambda: f"{missing()} of {count} at {coordinator}"):
    server.settimeout(0.5)
    while len(guests) < count - 1:
      if time.monotonic() > end:
        raise HostError(
          f"{missing()} of {count} did not join process 0 at {coordinator} (waited {seconds} s). "
          f"Start all {count} processes.",
          may_pass=True,
        )
      guests = {process: guest for process, guest in guests.items() if _is_open(guest)}
      # None has come, or a program that says something else.
      with contextlib.suppress(OSError, ValueError):
        _admit(server.accept()[0], guests, count)
  for guest in guests.values():
    with contextlib.suppress(OSError):
      guest.sendall(_GO)
      guest.close()


def _admit(guest: socket.socket, guests: dict[int, socket.socket], count: int) -> None:
  guest.settimeout(2)
  guest.sendall(_GREETING)
  process, of = map(int, _line(guest).split())
  if not 0 < process < of:
    raise ValueError(process)
  refusal = ""
  if of != count:
    refusal = f"process {process} was started as one of {of}, process 0 as one of {count}"
  elif process in guests:
    refusal = f"process {process} has joined already"
  if refusal:
    guest.sendall(f"{refusal}\n".encode())
    guest.close()
  else:
    guest.setblocking(False)
    guests[process] = guest


def come_to(coordinator: str, count: int, index: int, seconds: int) -> None:
  """In another process: returns once process 0 has received all, and JAX's service listens.

  Raises:
    HostError: process 0 does not answer for so many seconds, refuses this process, or another
      program listens.
  """
  end = time.monotonic() + seconds
  whom = f"process 0 of {count}"
  reason, strangers = "", 0.0
  with Waiting(lambda: f"{whom} at {coordinator}"):
    while time.monotonic() < end:
      try:
        with _connect(coordinator) as door:
          strangers = strangers or time.monotonic()
          if _line(door) == _GREETING.decode().strip():
            strangers, whom = 0.0, f"the others of {count}"
            door.sendall(f"{index} {count}\n".encode())
            door.settimeout(max(1.0, end - time.monotonic()))
            answer = _line(door)
            if answer == _GO.decode().strip():
              return _wait_for_service(coordinator, end)
            if answer:
              raise HostError(
                f"{answer}. Give every process the same --processes, and each its own --process."
              )
          reason = "another program listens there"
          if strangers and time.monotonic() - strangers > _STRANGER_SECONDS:
            break
      except OSError as error:
        reason, strangers = error.strerror or str(error), 0.0
        whom = f"process 0 of {count}"
      time.sleep(0.5)
  raise HostError(
    f"process 0 does not answer at {coordinator}: {reason} (waited up to {seconds} s). "
    "Start it, or correct --coordinator.",
    may_pass=True,
  )


def _wait_for_service(coordinator: str, end: float) -> None:
  while time.monotonic() < end:
    with contextlib.suppress(OSError), _connect(coordinator):
      return
    time.sleep(0.05)


def _connect(coordinator: str) -> socket.socket:
  host, _, port = coordinator.rpartition(":")
  return socket.create_connection((host.strip("[]"), int(port)), timeout=3)


def _line(connection: socket.socket) -> str:
  """What the other end says, up to a line's end; what is not text is replaced."""
  said = b""
  while not said.endswith(b"\n") and len(said) < _LONGEST_LINE:
    try:
      byte = connection.recv(1)
    except TimeoutError:
      break
    if not byte:
      break
    said += byte
  return said.decode(errors="replace").strip()


def _is_open(connection: socket.socket) -> bool:
  """Whether the other end of a connection that does not block is there still."""
  try:
    return bool(connection.recv(1, socket.MSG_PEEK))
  except BlockingIOError:
    return True
  except OSError:
    return False


def _listen(coordinator: str) -> socket.socket:
  """Raises HostError if another program has the port."""
  bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "")
  host, _, port = (bind or coordinator).rpartition(":")
  host = host.strip("[]") if bind else ""
  both = host in ("", "::") and socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
  try:
    return socket.create_server(
      (host, int(port)), family=family, dualstack_ipv6=both, backlog=_MOST_AT_ONCE
    )
  except OSError as error:
    raise HostError(
      f"process 0 ({socket.gethostname()}) cannot listen on port {port}: "
      f"{os.strerror(error.errno or 0)}. "
      "Choose a free port for --coordinator, the same in every process.",
      may_pass=True,
    ) from None


def is_gone(coordinator: str) -> bool:
  """Whether the coordinator's host answers and says that nobody listens there: its process has
  ended.
  """
  try:
    _connect(coordinator).close()
  except OSError as error:
    # No answer at all is another matter: the network may come back.
    return isinstance(error, ConnectionRefusedError)
  return False
