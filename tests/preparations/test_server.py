"""The servers run, and leave alone what they could not do alike.

Without them every preparation imports TensorFlow and every command JAX, which no other test would
notice.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import preparations

ROOT = Path(__file__).parents[2]
SERVERS = {
  preparations.SOCKET: ("data.prepare", preparations.ENVIRONMENT),
  preparations.COMMANDS_SERVER: ("launch.train", {}),
}
both = pytest.mark.parametrize("server", SERVERS)


def answer(server: str, folder, more: dict) -> list[bytes]:
  """What a server answers to a request that differs from an empty one in these values."""
  module, environment = SERVERS[server]
  request = {
    "path": [],
    "arguments": [module],
    "command": [],
    "python": [sys.executable, sys.prefix, sys.exec_prefix],
    "stdin": ["utf-8", "strict"],
    "outputs": [{"errors": "strict"}] * 2,
    "environment": dict(os.environ) | environment,
    "limits": [resource.getrlimit(number) for number in range(16)],
    "cwd": str(folder),
    "umask": 0o022,
  }
  whole = json.dumps(request | more).encode()
  with socket.socket(socket.AF_UNIX) as asked, open(os.devnull, "r+b") as null:
    asked.connect(os.environ[server])
    socket.send_fds(asked, [b"."], [null.fileno()] * 3)
    asked.sendall(len(whole).to_bytes(8, "big") + whole)
    return asked.makefile("rb").readlines()


@both
@pytest.mark.parametrize("other", ["limits", "environment"])
def test_a_process_with_other_limits_or_libraries_is_left_alone(server, tmp_path, other):
  assert answer(server, tmp_path, {other: {}}) == [b"refused\n"]


@both
def test_a_process_is_taken_and_its_status_told(server, tmp_path):
  # There is no such module on an empty path.
  assert answer(server, tmp_path, {}) == [b"taken\n", b"1\n"]


def test_a_command_says_the_same_however_it_is_started():
  """On the devices of its own XLA flags, which are read long after the import."""
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
  files = ["gin/runs/griffin_quickstart.gin", "gin/mesh/data.gin"]
  own, forked = (
    subprocess.run(
      [sys.executable, "-m", "launch.train", *files, "--describe_sharding"],
      cwd=ROOT,
      env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": preparations.with_hook(ROOT)} | more,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      check=True,
    )
    for more in ({}, preparations.forked())
  )
  assert (own.stdout, own.stderr) == (forked.stdout, forked.stderr)
  assert "data=4 x" in own.stdout


def test_a_command_is_handed_over_only_where_it_is_asked_for(tmp_path):
  """To whoever listens at the address, here the test."""
  with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(str(tmp_path / "socket"))
    listening.listen()
    process = subprocess.Popen(
      [sys.executable, "-m", "launch.train", "--help"],
      cwd=ROOT,
      env=os.environ
      | {"PYTHONPATH": preparations.with_hook(ROOT)}
      | {preparations.COMMANDS: str(tmp_path / "socket")},
      stdin=subprocess.DEVNULL,
    )
    taken, _ = listening.accept()
    with taken:
      socket.recv_fds(taken, 1, 3)
      stream = taken.makefile("rb")
      request = json.loads(stream.read(int.from_bytes(stream.read(8), "big")))
      taken.sendall(b"taken\n7\n")
      assert process.wait(60) == 7
  assert request["arguments"] == ["launch.train", "--help"]
  assert request["path"][0] == request["cwd"] == str(ROOT)
