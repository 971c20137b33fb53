"""CPU timings without page faults: glibc takes large arrays from huge pages and keeps them."""

from __future__ import annotations

import os
import sys

from launch import command

TUNABLES = (
  f"{command.HUGE_PAGES}:glibc.malloc.mmap_threshold=1073741824:"
  "glibc.malloc.trim_threshold=10737418240"
)


def restart_with(module: str) -> None:
  """Starts `python -m module` again with TUNABLES, which glibc reads when a process starts."""
  if os.environ.get("GLIBC_TUNABLES") != TUNABLES:
    os.environ["GLIBC_TUNABLES"] = TUNABLES
    os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])
