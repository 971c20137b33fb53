"""Hands `python -m data.prepare` over to the server of tests/preparations/, if there is one."""

import os
import sys

# As data/preparation.py starts it.
if sys.orig_argv[1:] == ["-P", "-m", "data.prepare"] and "TESTS_PREPARATIONS" in os.environ:
  import json
  import resource
  import signal
  import socket

  def hand_over() -> None:
    server = socket.socket(socket.AF_UNIX)
    try:
      server.connect(os.environ["TESTS_PREPARATIONS"])
    except OSError:
      return  # the server has ended
    limits = [resource.getrlimit(number) for number in range(16)]
    request = {"path": sys.path, "environment": dict(os.environ), "limits": limits}
    whole = json.dumps(request | {"cwd": os.getcwd(), "umask": os.umask(0)}).encode()
    os.umask(json.loads(whole)["umask"])
    # The first byte brings the open files with it.
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(len(whole).to_bytes(8, "big") + whole)
    answers = server.makefile("rb")
    if answers.readline() != b"taken\n":
      return
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, lambda number, frame: server.sendall(bytes([number])))
    for descriptor in (0, 1, 2):
      os.close(descriptor)
    status = int(answers.readline() or 1)
    if status < 0:
      signal.signal(-status, signal.SIG_DFL)
      os.kill(os.getpid(), -status)
    os._exit(status)

  hand_over()
