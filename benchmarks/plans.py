"""The table of plans: what the paper's sizes take on hardware that need not be attached.

    python -m benchmarks.plans                      # every row: hours on two cores
    python -m benchmarks.plans h200 --keep=runs/plans   # rows with this word; keep what is planned

Prints one Markdown row per plan, the best that `launch.plan --search` found, those that compile
soon first; each is a command of its own (`--commands` prints them). With `--keep` a row that was
planned before is not planned again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from base import paths
from base.wording import plural

MODELS = ("griffin", "hawk", "transformer")
SIZES = {"1b": MODELS, "7b": MODELS, "14b": ("griffin",)}
HARDWARE = ("v3-512", "v5e-256", "v5p-128", "h200-8")
# The recurrence's gates, 1 to 2% of the parameters, have no dimension that 64 devices divide.
WHOLE_GATES = (
  "--gin.sharding_plan.Parallelism.rules=@parallel.rules.Rules()",
  "--gin.parallel.rules.Rules.max_replicated=0.02",
)
FILES = (
  "gin/runs/griffin_quickstart.gin",
  "gin/precision/bfloat16.gin",
  "gin/mesh/data.gin",
)


def commands() -> Iterator[tuple[str, list[str]]]:
  """The name and the arguments of each row."""
  for hardware in HARDWARE:
    for size, models in SIZES.items():
      for model in models:
        yield f"{hardware}_{size}_{model}", arguments(hardware, size, model, rows=512, length=2048)
  yield "v5p-128_1b_griffin_1M", arguments("v5p-128", "1b", "griffin", rows=1, length=2**20)


def arguments(hardware: str, size: str, model: str, *, rows: int, length: int) -> list[str]:
  """Those of `launch.plan`, for a million tokens a step."""
  settings = {"VOCAB_SIZE": 32768, "SEQUENCE_LENGTH": length, "BATCH_SIZE": rows}
  if model == "griffin":
    settings["WINDOW"] = 1024
  macros = [f"--gin.{name}={value}" for name, value in settings.items()]
  files = [*FILES, f"gin/sizes/{size}.gin"]
  return [*files, f"--models={model}", f"--hardware={hardware}", "--search", *macros, *WHOLE_GATES]


def cost(command: tuple[str, list[str]]) -> tuple[bool, bool, int]:
  """What rows are sorted by: patterns of one block, then short rows of tokens, small models."""
  name, _ = command
  size = next(index for index, size in enumerate(SIZES) if f"_{size}_" in name)
  return "griffin" in name, name.endswith("1M"), size


def row(found: dict[str, Any], seconds: float) -> str:
  """A plan as a row of the table.

  `seconds` were spent on compiling it and those that it is the best of.
  """
  mesh = " x ".join(f"{name} {size}" for name, size in found["mesh"].items() if size > 1)
  cells = (
    found["hardware"],
    f"{found['model']}, {found['parameters'] / 1e9:.1f} B",
    f"{found['batch_size']:,} x {found['length']:,}",
    f"{mesh}, ZeRO {found['zero']}, "
    f"{plural(found['accumulate'], 'microbatch', 'microbatches')}, remat {found['remat']}",
    f"{'yes' if found['fits'] else 'no'}: {found['bytes'] / 2**30:.1f} of "
    f"{found['memory'] / 2**30:.0f} GiB",
    f"{found['expected_seconds']:.2f} s",
    f"{found['expected_tokens_per_second']:,.0f}",
    f"{found['expected_utilisation']:.0%}",
    f"{found['bound']}, {found['seconds']:.2f} s",
    f"{seconds:.0f} s",
  )
  return f"| {' | '.join(cells)} |"


def _is_complete(file: Path) -> bool:
  """Whether a file holds plans with expected times; those of earlier versions do not."""
  return file.exists() and '"expected_seconds"' in file.read_text(encoding="utf-8")


def main() -> int:
  """Prints the rows; returns the exit status: 1 if a row failed."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("words", nargs="*", help="plan the rows whose names hold one of these")
  parser.add_argument(
    "--keep", type=paths.local_argument, help="a folder for the plans' JSON files"
  )
  parser.add_argument("--commands", action="store_true", help="print the commands alone")
  args = parser.parse_args()
  rows = sorted(commands(), key=cost)
  for word in args.words:
    if not any(word in name for name, _ in rows):
      parser.error(f"no row has {word!r} in its name. Rows: {', '.join(name for name, _ in rows)}.")
  failures = 0
  with tempfile.TemporaryDirectory() as scratch:
    folder = args.keep or Path(scratch)
    for name, chosen in rows:
      if args.words and not any(word in name for word in args.words):
        continue
      command = [sys.executable, "-m", "launch.plan", *chosen]
      if args.commands:
        print(shlex.join(["python", *command[1:]]))
        continue
      file = folder / f"{name}.json"
      if not _is_complete(file):
        result = subprocess.run(
          [*command, f"--json={file}"], stdout=subprocess.DEVNULL, check=False
        )
        if not _is_complete(file):
          print(f"| {name}: failed with status {result.returncode} |", flush=True)
          failures += 1
          continue
      plans = json.loads(file.read_text(encoding="utf-8"))
      fitting = [found for found in plans if found["fits"]]
      best = min(fitting, key=lambda found: found["expected_seconds"], default=None)
      seconds = sum(found["compile_seconds"] for found in plans)
      shown = row(best, seconds) if best else f"| {name}: does not fit |"
      print(shown, flush=True)
  if failures:
    print(f"{plural(failures, 'row')} failed", file=sys.stderr)
  return 1 if failures else 0


if __name__ == "__main__":
  raise SystemExit(main())
