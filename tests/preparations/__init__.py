"""Starts processes for tests by forks of servers that have imported the libraries.

`python -m data.prepare` imports TensorFlow: five seconds of a core, for half a second of work. The
tests and their commands start it some hundred times. `python -m launch.train` and its like import
JAX, Flax and Orbax: more than a second of a core.

`hook/sitecustomize.py`, which every Python with that folder on its path reads at its start, hands
such a process over to a fork of a server, with its arguments, environment, working directory and
open files; it stays, passes signals on, and ends with the fork's status. Without the server, or
with other limits or variables, the process goes on as usual. Preparations are always handed over,
commands where the test asks for it (`forked`).

tests/data/test_preparation.py starts preparations as users do, and tests/documentation starts each
command once so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

SOCKET = "TESTS_PREPARATIONS"
# Processes with the first variable are handed over to the server that the second names.
COMMANDS, COMMANDS_SERVER = "TESTS_COMMANDS", "TESTS_COMMANDS_SERVER"
# As `data.preparation` sets them; libraries read them when they are imported.
ENVIRONMENT = {
  "CUDA_VISIBLE_DEVICES": "-1",
  "JAX_PLATFORMS": "cpu",
  "TF_CPP_MIN_LOG_LEVEL": "3",
}
HOOK = Path(__file__).parent / "hook"
SERVERS = pytest.StashKey[list[subprocess.Popen]]()


def serve() -> list[subprocess.Popen]:
  """Starts the servers, which import nothing before they are first asked, and end with this
  process.

  Sets the environment variables that every process from here on inherits.
  """
  before = os.environ.get("PYTHONPATH")
  os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (before, str(HOOK))))
  return [
    _serve(SOCKET, ("seqio", "tensorflow"), ENVIRONMENT),
    _serve(COMMANDS_SERVER, ("jax", "flax.linen", "optax", "orbax.checkpoint"), {}),
  ]


def _serve(
  variable: str, libraries: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen:
  """Starts a server; the variable names its socket."""
  path = Path(tempfile.mkdtemp(prefix="preparations-")) / "socket"
  os.environ[variable] = str(path)
  return subprocess.Popen(
    [sys.executable, Path(__file__).parent / "server.py", path, *libraries],
    env={**os.environ, **environment},
    stdin=subprocess.PIPE,  # its end is this process's
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )


def forked() -> dict[str, str]:
  """The variable with which `python -m launch...` is handed over, where there is a server.

  Not for tests that stop such a process (SIGSTOP) or ask for its number.
  """
  server = os.environ.get(COMMANDS_SERVER)
  return {COMMANDS: server} if server else {}


def with_hook(*folders: str | os.PathLike) -> str:
  """A PYTHONPATH of these folders under which preparations are handed over."""
  return os.pathsep.join([*map(str, folders), str(HOOK)])
