"""Expected times of Llama-style steps beside published ones, on TPUs that need not be attached.

    python -m benchmarks.published_runs                     # every run: half an hour
    python -m benchmarks.published_runs 8b_v6e-8 --keep=runs/published

Each row plans our step at a published run's sizes, slice, rows and tokens with ZeRO 3 over all
chips, and prints a Markdown row; then the errors of all rows. No constant of the replay is fitted
to these runs. docs/design/replay.md says how the programs differ. With `--keep`, a run that was
planned before is not planned again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from base import paths

FILES = (
  "gin/runs/llama_quickstart.gin",
  "gin/precision/bfloat16.gin",
  "gin/mesh/zero3.gin",
)
# Widths of each model: the macros of gin/models/llama.gin, and the width of its MLP.
SIZES = {
  "8b": ({"WIDTH": 4096, "HEADS": 32, "KV_HEADS": 8, "DEPTH": 32, "VOCAB_SIZE": 128256}, 14336),
  "70b": ({"WIDTH": 8192, "HEADS": 64, "KV_HEADS": 8, "DEPTH": 80, "VOCAB_SIZE": 32000}, 28672),
  "llama3_70b": (
    {"WIDTH": 8192, "HEADS": 64, "KV_HEADS": 8, "DEPTH": 80, "VOCAB_SIZE": 128256},
    28672,
  ),
  "32b": ({"WIDTH": 8192, "HEADS": 64, "KV_HEADS": 64, "DEPTH": 32, "VOCAB_SIZE": 32000}, 28672),
}


class Run(NamedTuple):
  """A published run.

  Attributes:
    size: a name of `SIZES`.
    hardware: the slice.
    rows, length: rows per chip, and tokens of a row.
    seconds: of a step, as published.
    source: the recipe, in AI-Hypercomputer/tpu-recipes unless it says another place.
  """

  size: str
  hardware: str
  rows: int
  length: int
  seconds: float
  source: str

  @property
  def name(self) -> str:
    """A name for a file."""
    return f"{self.size}_{self.hardware}"


RUNS = (
  Run("8b", "v6e-8", 3, 8192, 3.443, "training/trillium/Llama3.1-8B-MaxText/v6e-8"),
  Run("8b", "v6e-64", 5, 8192, 5.652, "training/trillium/Llama3.1-8B-MaxText/v6e-64"),
  Run("70b", "v6e-256", 2, 4096, 9.052, "training/trillium/Llama2-70B-MaxText"),
  Run(
    "llama3_70b", "tpu7x-128", 4, 8192, 12.20, "training/ironwood/llama3.1-70b/8k-bf16-tpu7x-4x4x4"
  ),
  # MaxText's own model of 32B parameters: its 132 TFLOP/s per chip, by the count of FLOPs that it
  # had then (6 per parameter and token, and 12 T per channel of every head), are 12.2 s.
  Run("32b", "v5e-256", 4, 2048, 12.2, "AI-Hypercomputer/maxtext: MaxText/configs/v5e"),
  Run("8b", "v6e-16", 3, 8192, 3.393, "training/trillium/Llama3.1-8B-MaxText/v6e-16"),
  Run("8b", "v6e-256", 4, 8192, 4.546, "training/trillium/Llama3.1-8B-MaxText/v6e-256"),
)


def arguments(run: Run, remat: str, logit_bytes: int) -> list[str]:
  """Those of `launch.plan` for a run."""
  from planning.hardware import catalogue

  widths, mlp_width = SIZES[run.size]
  settings: dict[str, Any] = {
    **widths,
    "BATCH_SIZE": run.rows * catalogue.hardware(run.hardware).chips,
    "SEQUENCE_LENGTH": run.length,
    "models.backbone.Backbone.mlp_width": mlp_width,
    "models.backbone.Backbone.remat": remat,
    "training.step.StepOptions.max_logit_bytes": logit_bytes,
  }
  bindings = [f"--gin.{name}={value}" for name, value in settings.items()]
  return [*FILES, f"--hardware={run.hardware}", *bindings]


def plan_of(run: Run, options: argparse.Namespace, file: Path) -> dict[str, Any]:
  """Plans a run in a process of its own, or reads the file of an earlier one; returns the record.

  Raises:
    SystemExit: the plan fails or does not fit; its last lines are shown.
  """
  if not file.exists():
    file.parent.mkdir(parents=True, exist_ok=True)
    chosen = arguments(run, options.remat, options.logit_bytes)
    command = [sys.executable, "-m", "launch.plan", *chosen, f"--json={file}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not file.exists():
      shown = "\n".join((done.stderr + done.stdout).splitlines()[-5:])
      raise SystemExit(f"error: {run.name} ends with {done.returncode}:\n{shown}")
  (found,) = json.loads(file.read_text(encoding="utf-8"))
  return found


def row(run: Run, found: dict[str, Any]) -> str:
  """Formats a run beside its plan."""
  expected = found["expected_seconds"]
  shares = ", ".join(
    f"{name} {share:.0%}" for name, share in found["expected_shares"].items() if share >= 0.01
  )
  return (
    f"| {run.size}, {run.hardware}, {run.rows} x {run.length:,} | {run.seconds:.3f} | "
    f"{expected:.3f} | {expected / run.seconds:.2f} | {shares} |"
  )


def errors(ratios: list[float]) -> str:
  """Says how far expected times are off, as they are, and with one factor from the other runs."""
  off = [abs(ratio - 1) for ratio in ratios]
  lines = [f"off by {statistics.median(off):.0%} in the median, {max(off):.0%} at worst"]
  if len(ratios) > 2:
    left = [
      abs(ratio / statistics.median(ratios[:place] + ratios[place + 1 :]) - 1)
      for place, ratio in enumerate(ratios)
    ]
    lines.append(
      f"with the median ratio of the other runs divided out: {statistics.median(left):.0%} in the "
      f"median, {max(left):.0%} at worst"
    )
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  names = [run.name for run in RUNS]
  parser.add_argument("runs", nargs="*", help=f"of {', '.join(names)}; all without")
  parser.add_argument("--remat", default="full", help="the remat policy")
  parser.add_argument(
    "--logit_bytes", type=int, default=2**30, help="of logits per device in one piece"
  )
  parser.add_argument("--keep", type=paths.local_argument, help="a folder for the plans' files")
  options = parser.parse_args()
  for name in options.runs:
    if name not in names:
      parser.error(f"{name!r} is not a published run; choose from {', '.join(names)}")
  print("| run | published, s | expected, s | ratio | shares of the expected time |")
  print("|---|---|---|---|---|")
  ratios = []
  with tempfile.TemporaryDirectory() as scratch:
    for run in RUNS:
      if options.runs and run.name not in options.runs:
        continue
      file = (options.keep or Path(scratch)) / f"{run.name}_{options.remat}.json"
      found = plan_of(run, options, file)
      ratios.append(found["expected_seconds"] / run.seconds)
      print(row(run, found), flush=True)
  print(f"\n{errors(ratios)}")


if __name__ == "__main__":
  main()
