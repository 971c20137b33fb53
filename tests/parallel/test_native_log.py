"""C++ logs on file descriptor 2 are held back after a lost connection, and then printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START = """
import os, sys
from parallel.native_log import NativeLog
log = NativeLog()
os.write(2, b"a warning of C++\\n")
"""
LOST = """
lines = [
  b"E1129 20:26:26.886156 25561 coordination_service_agent.cc:289] Polled an error",
  b"=== Source Location Trace: ===",
  b"F1129 20:26:26.886200 25561 client.h:80] Terminating process because",
]
for line in lines:
  os.write(2, line + b"\\n")
"""


def printed(program: str) -> list[str]:
  done = subprocess.run(
    [sys.executable, "-c", START + program],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stderr.splitlines()


def test_a_named_host_stands_in_place_of_what_cpp_says():
  end = "import time\ntime.sleep(0.5)\nlog.write('error: process 0 is gone\\n')\nos._exit(0)"
  assert printed(LOST + end) == ["a warning of C++", "error: process 0 is gone"]


@pytest.mark.parametrize("end", ["log.close()", "import time\ntime.sleep(6.5)\nos._exit(0)"])
def test_nothing_is_lost_where_no_host_is_named(end):
  assert len(printed(LOST + end)) == 4


def test_python_prints_as_before():
  program = "print('one', file=sys.stderr)\nlog.close()\nprint('two', file=sys.stderr)"
  assert {"one", "two", "a warning of C++"} == set(printed(program))


def test_a_flood_never_blocks():
  assert "after" in printed(
    """
for _ in range(2000):
  try:
    os.write(2, b"x" * 5000 + b"\\n")
  except BlockingIOError:
    pass
print("after", file=sys.stderr)
log.close()
"""
  )
