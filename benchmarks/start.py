"""Seconds until every command has been imported, and has printed its --help.

    python -m benchmarks.start                 # about a minute
    python -m benchmarks.start train --rounds=5

Commands and rounds are interleaved, and the first round is not counted: it reads the files into
memory. CPU seconds say what the process itself costs, on a machine that other jobs share.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# What a user waits for without noticing.
LIMIT_SECONDS = 1.0


class Taken(NamedTuple):
  """Seconds of one process."""

  wall: float
  cpu: float


def names() -> list[str]:
  """The commands: files of launch/ that run as modules."""
  files = sorted((ROOT / "launch").glob("*.py"))
  return [file.stem for file in files if '__name__ == "__main__"' in file.read_text("utf-8")]


def started(command: list[str]) -> Taken:
  """Runs a command; its output goes nowhere."""
  before, since = _children(), time.perf_counter()
  subprocess.run(command, cwd=ROOT, check=True, capture_output=True, stdin=subprocess.DEVNULL)
  return Taken(time.perf_counter() - since, _children() - before)


def _children() -> float:
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def main() -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument(
    "command", nargs="*", choices=[[], *names()], metavar="COMMAND", help="default: all"
  )
  parser.add_argument("--rounds", type=int, default=3, help="that count (default: %(default)s)")
  options = parser.parse_args()
  cases = {
    (name, kind): command
    for name in options.command or names()
    for kind, command in {
      "import": [sys.executable, "-c", f"import launch.{name}"],
      "--help": [sys.executable, "-m", f"launch.{name}", "--help"],
    }.items()
  }
  cases[("python", "alone")] = [sys.executable, "-c", ""]
  os.environ.setdefault("PYTHONPATH", str(ROOT))
  taken: dict[tuple[str, str], list[Taken]] = {case: [] for case in cases}
  for round_ in range(options.rounds + 1):
    for case, command in cases.items():
      seconds = started(command)
      if round_:
        taken[case].append(seconds)
  print(f"{'command':<24} {'':<8} {'wall s':>8} {'CPU s':>8}   medians of {options.rounds}")
  slow = []
  for (name, kind), found in taken.items():
    wall, cpu = (statistics.median(values) for values in zip(*found, strict=True))
    print(f"{name:<24} {kind:<8} {wall:8.2f} {cpu:8.2f}")
    if wall >= LIMIT_SECONDS:
      slow.append(f"launch.{name} {kind}")
  print(f"at or above {LIMIT_SECONDS:.0f} s: {', '.join(slow) or 'none'}")
  return 1 if slow else 0


if __name__ == "__main__":
  sys.exit(main())
