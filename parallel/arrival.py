"""How the processes of one program find each other at its start: who they are, and a wait for process 0."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from typing import Any

# A wait says so after this long without a word, and again after each longer time.
TOLD_AFTER_SECONDS = 5
TOLD_EVERY_SECONDS = 10


class HostError(Exception):
  """The processes cannot work together: one is missing, or differs.

  Attributes:
    may_pass: whether another start may find them together.
  """

  def __init__(self, message: str, *, may_pass: bool = False):
    super().__init__(message)
    self.may_pass = may_pass


class Waiting:
  """Tells every few seconds for whom this process waits, until `stop`."""

  def __init__(self, whom: str):
    """`whom`: such as 'process 0 of 2 at host0:1234'."""
    self._whom = whom
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._tell, daemon=True, name="waiting")
    self._thread.start()

  def stop(self) -> None:
    """Returns once nothing more is told."""
    self._stopped.set()
    self._thread.join()

  def _tell(self) -> None:
    began, pause = time.monotonic(), TOLD_AFTER_SECONDS
    while not self._stopped.wait(pause):
      seconds = time.monotonic() - began
      print(f"waiting for {self._whom} ({seconds:.0f} s)", file=sys.stderr, flush=True)
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
  if None in found[:3]:
    raise HostError(
      "neither SLURM, Kubernetes nor a TPU's service says who the other processes are."
    )
  if os.environ.get("JAX_LOCAL_DEVICE_IDS"):
    # Said by the user; a cluster knows only one device a process. JAX reads it where none are passed.
    return *found[:3], None
  return found


def require_free(coordinator: str) -> None:
  """Raises HostError if another program has the port: the service would crash on it."""
  port = int(coordinator.rpartition(":")[2])
  if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
    return
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
  except OSError as error:
    raise HostError(
      f"process 0 ({socket.gethostname()}) cannot listen on port {port}: {error.strerror}. "
      "Choose a free port for --coordinator, the same in every process.",
      may_pass=True,
    ) from None


def wait_for(coordinator: str, seconds: int) -> None:
  """Returns once something listens at the coordinator's address.

  Raises:
    HostError: nothing does for so many seconds.
  """
  host, _, port = coordinator.rpartition(":")
  end = time.monotonic() + seconds
  while True:
    try:
      socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
      return
    except OSError as error:
      if time.monotonic() > end:
        raise HostError(
          f"process 0 does not answer at {coordinator}: {error.strerror or error} (tried for {seconds} s). "
          "Start it, or correct --coordinator.",
          may_pass=True,
        ) from None
    time.sleep(0.5)


def is_gone(coordinator: str) -> bool:
  """Whether the coordinator's host answers and says that nobody listens there: its process has ended."""
  host, _, port = coordinator.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
  except OSError as error:
    # No answer at all is another matter: the network may come back.
    return isinstance(error, ConnectionRefusedError)
  return False
