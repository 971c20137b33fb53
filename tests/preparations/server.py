"""Forks preparations of text from a process that has imported TensorFlow: see __init__.py.

    python tests/preparations/server.py SOCKET < pipe

Ends when the pipe does. It imports no module of the project: a fork takes those of the folders that
the process which it stands for would take.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
import tempfile

# Of what the libraries read when they are imported, what tests change.
IMPORTED_WITH = {
  name: os.environ.get(name)
  for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "TF_CPP_MIN_LOG_LEVEL")
}
LIMITS = [list(resource.getrlimit(number)) for number in range(16)]


def serve(path: str) -> None:
  """Forks a process for each connection until stdin ends."""
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
  with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(path)
    listening.listen(64)
    while True:
      ready, _, _ = select.select([listening, sys.stdin], [], [])
      if sys.stdin in ready:
        os.unlink(path)
        os.rmdir(os.path.dirname(path))
        return
      connection, _ = listening.accept()
      import seqio  # noqa: F401
      import tensorflow  # noqa: F401

      with connection:
        if os.fork() == 0:
          listening.close()
          try:
            _take(connection)
          finally:
            os._exit(1)


def _take(connection: socket.socket) -> None:
  """Runs one preparation, passes signals on to it, and tells its exit status."""
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  _, files, _, _ = socket.recv_fds(connection, 1, 3)
  stream = connection.makefile("rb")
  request = json.loads(stream.read(int.from_bytes(stream.read(8), "big")))
  same = all(request["environment"].get(k) == v for k, v in IMPORTED_WITH.items())
  if request["limits"] != LIMITS or not same:
    connection.sendall(b"refused\n")
    return
  connection.sendall(b"taken\n")
  child = os.fork()
  if child == 0:
    connection.close()
    _prepare(request, files)
  for file in files:
    os.close(file)
  ended = os.pidfd_open(child)
  while True:
    ready, _, _ = select.select([connection, ended], [], [])
    if ended in ready:
      status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
      # Unless the process that it stood for was killed meanwhile.
      with contextlib.suppress(OSError):
        connection.sendall(b"%d\n" % status)
      return
    numbers = connection.recv(16)
    for number in numbers or [signal.SIGKILL]:  # that process was killed
      os.kill(child, number)
    if not numbers:
      return


def _prepare(request: dict, files: list[int]) -> None:
  """Becomes the process that was handed over."""
  for descriptor, file in enumerate(files):
    os.dup2(file, descriptor)
    os.close(file)
  os.chdir(request["cwd"])
  os.umask(request["umask"])
  os.environ.clear()
  os.environ.update(request["environment"])
  tempfile.tempdir = None  # of this process: it was found out before the fork
  sys.path[:] = request["path"]
  sys.argv[:] = ["-m"]
  for name in ("stdin", "stdout", "stderr"):
    mode = "r" if name == "stdin" else "w"
    descriptor = ("stdin", "stdout", "stderr").index(name)
    setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
  signal.signal(signal.SIGINT, signal.default_int_handler)
  status = 1
  try:
    # It ends with os._exit.
    runpy.run_module("data.prepare", run_name="__main__", alter_sys=True)
  except SystemExit as leaving:
    status = leaving.code if isinstance(leaving.code, int) else 1
  finally:
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
  serve(sys.argv[1])
