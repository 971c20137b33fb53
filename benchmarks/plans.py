"""The table of plans: what the paper's sizes take on hardware that is not here.

    python -m benchmarks.plans                      # every row: hours on two cores
    python -m benchmarks.plans h200 --keep=runs/plans   # rows whose name holds a word; keeps what was planned

Prints one Markdown row per plan, with what `launch.plan` found, those that compile soon first; each is a
command of its own (`--commands` prints them). With `--keep` a row that was planned before is not planned again.
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

MODELS = ("griffin", "hawk", "transformer")
SIZES = {"1b": MODELS, "7b": MODELS, "14b": ("griffin",)}
# Rows of 2,048 tokens, a million tokens a step. Parameters over all devices (ZeRO 3); microbatches keep
# activations small where a device has many rows. Model shards, where the shards of a width over all
# devices would be too few rows for a TPU to scatter, and microbatches by size:
HARDWARE = {
  "v3-512": (4, {"1b": 1, "7b": 1, "14b": 2}),
  "v5e-256": (4, {"1b": 1, "7b": 1, "14b": 2}),
  "v5p-128": (1, {"1b": 1, "7b": 1, "14b": 2}),
  "h200-8": (1, {"1b": 8, "7b": 16, "14b": 16}),
}
# The recurrence's gates, 1 to 2% of the parameters, have no dimension that 64 devices divide.
WHOLE_GATES = (
  "--gin.layout.Parallelism.rules=@parallel.rules.Rules()",
  "--gin.parallel.rules.Rules.max_replicated=0.02",
)
FILES = (
  "gin/runs/griffin_quickstart.gin",
  "gin/precision/bfloat16.gin",
  "gin/mesh/zero3.gin",
)


def commands() -> Iterator[tuple[str, list[str]]]:
  """The name and the arguments of each row."""
  for hardware, (shards, sizes) in HARDWARE.items():
    for size, microbatches in sizes.items():
      for model in SIZES[size]:
        settings = {
          "SEQUENCE_LENGTH": 2048,
          "BATCH_SIZE": 512,
          "MICROBATCHES": microbatches,
          "MODEL_SHARDS": shards,
        }
        yield f"{hardware}_{size}_{model}", arguments(hardware, size, model, settings)
  # One row of a million tokens, over all devices.
  settings = {"SEQUENCE_LENGTH": 2**20, "BATCH_SIZE": 1, "SEQUENCE_SHARDS": 64}
  yield "v5p-128_1b_griffin_1M", arguments("v5p-128", "1b", "griffin", settings)


def arguments(hardware: str, size: str, model: str, settings: dict[str, int]) -> list[str]:
  """Those of `launch.plan`."""
  settings = {"VOCAB_SIZE": 32768, **settings, **({"WINDOW": 1024} if model == "griffin" else {})}
  macros = [f"--gin.{name}={value}" for name, value in settings.items()]
  files = [*FILES, f"gin/sizes/{size}.gin"]
  return [*files, f"--models={model}", f"--hardware={hardware}", *macros, *WHOLE_GATES]


def cost(command: tuple[str, list[str]]) -> tuple[bool, bool, int]:
  """What rows come first by: patterns of one block, then short rows of tokens, then small models."""
  name, _ = command
  size = next(index for index, size in enumerate(SIZES) if f"_{size}_" in name)
  return "griffin" in name, name.endswith("1M"), size


def row(found: dict[str, Any]) -> str:
  """A plan as a row of the table."""
  mesh = " x ".join(f"{name} {size}" for name, size in found["mesh"].items() if size > 1)
  cells = (
    found["hardware"],
    f"{found['model']}, {found['parameters'] / 1e9:.1f} B",
    f"{found['batch_size']:,} x {found['length']:,}",
    f"{mesh}, ZeRO {found['zero']}, {found['accumulate']} microbatches, remat {found['remat']}",
    f"{'yes' if found['fits'] else 'no'}: {found['bytes'] / 2**30:.1f} of {found['memory'] / 2**30:.0f} GiB",
    f"{found['bound']}, {found['seconds']:.2f} s",
    f"{found['tokens_per_second']:,.0f}",
    f"{found['utilisation']:.0%}",
    f"{found['compile_seconds']:.0f} s",
  )
  return f"| {' | '.join(cells)} |"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("words", nargs="*", help="plan the rows whose names hold one of these")
  parser.add_argument("--keep", type=Path, help="a folder for the plans' JSON files")
  parser.add_argument("--commands", action="store_true", help="print the commands alone")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    folder = args.keep or Path(scratch)
    for name, chosen in sorted(commands(), key=cost):
      if args.words and not any(word in name for word in args.words):
        continue
      command = [sys.executable, "-m", "launch.plan", *chosen]
      if args.commands:
        print(shlex.join(["python", *command[1:]]))
        continue
      file = folder / f"{name}.json"
      if not file.exists():
        result = subprocess.run(
          [*command, f"--json={file}"], stdout=subprocess.DEVNULL, check=False
        )
        if not file.exists():
          print(f"| {name}: failed with status {result.returncode} |", flush=True)
          continue
      plans = json.loads(file.read_text(encoding="utf-8"))
      print("\n".join(map(row, plans)) or f"| {name}: does not fit |", flush=True)


if __name__ == "__main__":
  main()
