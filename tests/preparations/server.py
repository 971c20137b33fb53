"""Forks processes from one that has imported the libraries that they need: see __init__.py.

    python tests/preparations/server.py SOCKET LIBRARY... < pipe

Ends when the pipe does. It imports no module of the project: a fork takes those of the folders that
the process which it stands for would take.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import resource
import runpy
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence

# What JAX reads when it is imported and takes later, too.
LATER = {
  "JAX_COMPILATION_CACHE_DIR": str,
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": float,
}
# Of what Python reads when it starts, what the request tells in other words.
TOLD = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
LIMITS = [list(resource.getrlimit(number)) for number in range(16)]


def read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
  """The variables that Python, glibc and the libraries read when they start or are imported."""
  beginnings = ("CUDA_VISIBLE", "GLIBC_", "JAX_", "LC_", "LANG", "PYTHON", "TF_CPP")
  return {
    name: value
    for name, value in environment.items()
    if name.startswith(beginnings) and name not in (*LATER, *TOLD)
  }


# What the libraries set when they are imported.
SET_BY_LIBRARIES: dict[str, str] = {}


def is_alike(request: dict) -> bool:
  """Whether the process would have started with the limits and variables of this one."""
  asked = SET_BY_LIBRARIES | request["environment"]
  told = all(name in asked for name in LATER)
  return told and request["limits"] == LIMITS and read_at_start(asked) == read_at_start(os.environ)


def serve(path: str, libraries: Sequence[str]) -> None:
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
      if libraries:
        _open_streams()
        before = dict(os.environ)
        for library in libraries:
          importlib.import_module(library)
        SET_BY_LIBRARIES.update({k: v for k, v in os.environ.items() if k not in before})
        libraries = ()
        gc.freeze()  # what every fork has
      with connection:
        if os.fork() == 0:
          listening.close()
          _take(connection)
          os._exit(0)


def _open_streams() -> None:
  """Makes the streams of a fork's output, which the libraries' loggers keep from their import on.

  On a pipe: a stream on what has positions, such as /dev/null, would ask a pipe for its own.
  """
  reading, writing = os.pipe()
  for descriptor, name in ((1, "stdout"), (2, "stderr")):
    os.dup2(writing, descriptor)
    setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
  os.close(reading)
  os.close(writing)


def _take(connection: socket.socket) -> None:
  """Runs one process, passes signals on to it, and tells its exit status.

  Raises:
    SystemExit: in that process, which ends as an interpreter does.
  """
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  _, files, _, _ = socket.recv_fds(connection, 1, 3)
  stream = connection.makefile("rb")
  request = json.loads(stream.read(int.from_bytes(stream.read(8), "big")))
  if not is_alike(request):
    connection.sendall(b"refused\n")
    return
  connection.sendall(b"taken\n")
  child = os.fork()
  if child == 0:
    stream.close()
    connection.close()
    _become(request, files)
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


def _become(request: dict, files: list[int]) -> None:
  """Becomes the process that was handed over."""
  for descriptor, file in enumerate(files):
    os.dup2(file, descriptor)
    os.close(file)
  os.chdir(request["cwd"])
  os.umask(request["umask"])
  os.environ.clear()
  os.environ.update(SET_BY_LIBRARIES | request["environment"])
  tempfile.tempdir = None  # of this process: it was found out before the fork
  if "numpy" in sys.modules:
    sys.modules["numpy"].random.seed(random.randrange(2**32))
  if "jax" in sys.modules:
    for name, kind in LATER.items():
      if name in os.environ:
        sys.modules["jax"].config.update(name.lower(), kind(os.environ[name]))
  sys.path[:] = request["path"]
  module, *arguments = request["arguments"]
  sys.argv[:] = ["-m", *arguments]
  sys.orig_argv[:] = request["command"]
  sys.executable, sys.prefix, sys.exec_prefix = request["python"]
  encoding, errors = request["stdin"]
  sys.stdin = open(0, encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
  for stream, settings in zip((sys.stdout, sys.stderr), request["outputs"], strict=True):
    stream.reconfigure(**settings)
  signal.signal(signal.SIGINT, signal.default_int_handler)
  runpy.run_module(module, run_name="__main__", alter_sys=True)
  raise SystemExit


if __name__ == "__main__":
  serve(sys.argv[1], sys.argv[2:])
