"""Runs every test on the CPU, even if the machine has an accelerator."""

import gc
import os
import sys
from pathlib import Path

from launch import command, quick_compilation
from tests import preparations

# Set before anything imports JAX. libtpu is installed for ahead-of-time compilation and must not be
# probed for devices: the query for a machine's metadata takes seconds where there is none.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
# A test runs its programs once or twice: the compiler's optimizations would take most of the time.
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *quick_compilation.FLAGS])
# For the workers and processes that start from here, as the commands do for themselves.
os.environ.setdefault("GLIBC_TUNABLES", command.HUGE_PAGES)
# Most of the tests' time is compilation, often of a program that another test has compiled.
cache = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
# What tests make is no run of the user's.
os.environ["XDG_STATE_HOME"] = str(cache.parent / "state")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# `make test` hands its variables to the makes that tests start, and has them print their folders.
for name in ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "MAKE_TERMOUT", "MAKE_TERMERR"):
  os.environ.pop(name, None)
gc.set_threshold(*command.GARBAGE_THRESHOLDS)
# For the preparations that tests start themselves: they take over this process's path.
sys.path.append(str(preparations.HOOK))


def pytest_configure(config):
  """Starts the servers that fork processes, once for all workers."""
  if not hasattr(config, "workerinput"):
    config.stash[preparations.SERVERS] = preparations.serve()


def pytest_unconfigure(config):
  """Ends them."""
  for server in config.stash.get(preparations.SERVERS, []):
    server.communicate()
