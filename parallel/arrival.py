"""Brings the processes of a program together at its start: they meet at process 0."""

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

# Seconds after which a wait prints a line, and then repeats it.
TOLD_AFTER_SECONDS = 5
TOLD_EVERY_SECONDS = 10
# First message of process 0, and its message when all have joined.
_GREETING = b"griffin: who comes?\n"
_GO = b"all have come\n"
_LONGEST_LINE = 300
_MOST_AT_ONCE = 1024
# How many missing processes are listed.
_SHOWN = 8
# For so long another program that is about to end may listen at the address.
_STRANGER_SECONDS = 8


class HostError(UserError):
  """The processes cannot work together: one is missing, or differs.

  Attributes:
    may_pass: whether starting again may help.
  """


class Waiting:
  """Context manager that prints every few seconds for which process this one waits."""

  def __init__(self, whom: Callable[[], str]):
    """Sets `whom`, which returns text such as 'process 0 of 2 at host0:1234'."""
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
  """Reads address of process 0, number of processes, index and devices from the cluster.

  Raises:
    HostError: the cluster does not provide them.
  """
  from jax._src import clusters

  found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
    os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, seconds
  )
  address, count, index, devices = found
  if address is None or count is None or index is None:
    raise HostError("no cluster found: SLURM, Kubernetes and TPU metadata name no other processes.")
  if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
    # Set by the user: clusters have only one device per process. JAX reads it where none are
    # passed.
    devices = None
  return address, count, index, devices


def receive(coordinator: str, count: int, seconds: int) -> None:
  """Waits in process 0 until every other process has called `come_to`.

  JAX's service does not distinguish programs: a process that joins twice, or of another program,
  makes it end all processes. So they meet at its port before it listens there.

  Raises:
    HostError: the port is in use, or some processes do not join.
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
      # No process came, or another program did.
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
  """Waits in another process until process 0 has received all and JAX's service listens.

  Raises:
    HostError: process 0 does not answer in time, refuses this process, or another program listens.
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
  """Reads a line from the other end; invalid text is replaced."""
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
  """Whether the other end of a non-blocking connection is still open."""
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
  """Whether the coordinator's host answers that nothing listens: its process has ended."""
  try:
    _connect(coordinator).close()
  except OSError as error:
    # Without any answer the network may come back.
    return isinstance(error, ConnectionRefusedError)
  return False
