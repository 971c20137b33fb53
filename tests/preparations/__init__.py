"""Starts preparations of text for tests from one process that has imported TensorFlow.

`python -m data.prepare` imports TensorFlow: five seconds of a core, for half a second of work. The
tests and their commands start it some hundred times. `hook/sitecustomize.py`, which every Python
with that folder on its path reads at its start, hands such a process over to a fork of the server,
with its arguments, environment, working directory and open files; it stays, passes signals on, and
ends with the fork's status. Without the server, or with other limits, the process goes on as usual.

tests/data/test_preparation.py starts it as users do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SOCKET = "TESTS_PREPARATIONS"
# As `data.preparation` sets them; libraries read them when they are imported.
ENVIRONMENT = {
  "CUDA_VISIBLE_DEVICES": "-1",
  "JAX_PLATFORMS": "cpu",
  "TF_CPP_MIN_LOG_LEVEL": "3",
}
HOOK = Path(__file__).parent / "hook"
SERVER = pytest.StashKey[subprocess.Popen]()


def serve() -> subprocess.Popen:
  """Starts the server, which imports nothing before it is first asked, and ends with this process.

  Sets the environment variables that every process from here on inherits.
  """
  path = Path(tempfile.mkdtemp(prefix="preparations-")) / "socket"
  os.environ[SOCKET] = str(path)
  before = os.environ.get("PYTHONPATH")
  os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (before, str(HOOK))))
  server = Path(__file__).parent / "server.py"
  return subprocess.Popen(
    [sys.executable, server, path],
    env=os.environ | ENVIRONMENT,
    stdin=subprocess.PIPE,  # its end is this process's
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )


def with_hook(*folders: str | os.PathLike) -> str:
  """A PYTHONPATH of these folders under which preparations are handed over."""
  return os.pathsep.join([*map(str, folders), str(HOOK)])
