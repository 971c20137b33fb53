"""The server of preparations runs, and leaves alone what it could not do alike.

Without it every preparation imports TensorFlow, which no other test would notice.
"""

from __future__ import annotations

import json
import os
import resource
import socket

import pytest

from tests import preparations


def answer(folder, more: dict) -> list[bytes]:
  """What the server answers to an empty request for a preparation with other values."""
  request = {
    "path": [],
    "environment": dict(os.environ) | preparations.ENVIRONMENT,
    "limits": [resource.getrlimit(number) for number in range(16)],
    "cwd": str(folder),
    "umask": 0o022,
  }
  whole = json.dumps(request | more).encode()
  with socket.socket(socket.AF_UNIX) as server, open(os.devnull, "r+b") as null:
    server.connect(os.environ[preparations.SOCKET])
    socket.send_fds(server, [b"."], [null.fileno()] * 3)
    server.sendall(len(whole).to_bytes(8, "big") + whole)
    return server.makefile("rb").readlines()


@pytest.mark.parametrize("other", ["limits", "environment"])
def test_a_process_with_other_limits_or_libraries_is_left_alone(tmp_path, other):
  assert answer(tmp_path, {other: {}}) == [b"refused\n"]


def test_a_process_is_taken_and_its_status_told(tmp_path):
  # There is no module data.prepare on an empty path.
  assert answer(tmp_path, {}) == [b"taken\n", b"1\n"]
