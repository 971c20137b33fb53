"""Hands a process over to a server of tests/preparations/, if there is one for it."""

import os
import sys


def server_for(command: list[str]) -> tuple[str, int]:
  """The environment variable that names the server's socket, and where the module stands."""
  # As data/preparation.py starts it.
  if command[1:] == ["-P", "-m", "data.prepare"]:
    return "TESTS_PREPARATIONS", 3
  # Not `launch.check`, which makes its devices where nothing has imported JAX.
  named = command[2] if command[1:2] == ["-m"] and command[2:] else ""
  if named.startswith("launch.") and named != "launch.check":
    return "TESTS_COMMANDS", 2
  return "", 0


variable, start = server_for(sys.orig_argv)
if variable in os.environ:
  import json
  import resource
  import signal
  import socket

  def is_usual() -> bool:
    """Whether the process has no open files but the three, and takes signals as Python does."""
    for descriptor in (0, 1, 2):
      try:
        os.fstat(descriptor)
      except OSError:
        return False
    others = {name for name in os.listdir("/proc/self/fd") if int(name) > 2}
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return len(others) == 1 and usual  # the one lists them

  def hand_over() -> None:
    server = socket.socket(socket.AF_UNIX)
    try:
      server.connect(os.environ[variable])
    except OSError:
      return  # the server has ended
    limits = [resource.getrlimit(number) for number in range(16)]
    # `-m` alone has the working directory on the path, but not yet here.
    path = sys.path if "-P" in sys.orig_argv[1:start] else [os.getcwd(), *sys.path]
    outputs = [
      {
        "encoding": stream.encoding,
        "errors": stream.errors,
        # Also for PYTHONUNBUFFERED.
        "line_buffering": stream.line_buffering or stream.write_through,
      }
      for stream in (sys.stdout, sys.stderr)
    ]
    request = {
      "arguments": sys.orig_argv[start:],
      "command": sys.orig_argv,
      "cwd": os.getcwd(),
      "environment": dict(os.environ),
      "limits": limits,
      "outputs": outputs,
      "path": path,
      "python": [sys.executable, sys.prefix, sys.exec_prefix],
      "stdin": [sys.stdin.encoding, sys.stdin.errors],
      "umask": os.umask(0),
    }
    os.umask(request["umask"])
    whole = json.dumps(request).encode()
    # The first byte brings the open files with it.
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(len(whole).to_bytes(8, "big") + whole)
    answers = server.makefile("rb")
    if answers.readline() != b"taken\n":
      return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
      signal.signal(number, lambda number, frame: server.sendall(bytes([number])))
    for descriptor in (0, 1, 2):
      os.close(descriptor)
    status = int(answers.readline() or 1)
    if status < 0:
      signal.signal(-status, signal.SIG_DFL)
      os.kill(os.getpid(), -status)
    os._exit(status)

  if is_usual():
    hand_over()
