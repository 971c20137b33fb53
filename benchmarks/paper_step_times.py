"""Section 4 of the Griffin paper without a TPU: expected step times beside the paper's figures.

    python -m benchmarks.paper_step_times                     # 400M on v3-8: nine plans
    python -m benchmarks.paper_step_times --size=1b --hardware=v5e-16

Two tables, in Markdown. The first is the step of Hawk with each recurrence kernel, relative to the
scan that JAX offers (section 4.2). The second is the step at a fixed number of tokens, relative to
the baseline at 2,048 (section 4.3). Times come from `launch.plan`. No TPU is needed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

FILES = (
  "gin/runs/griffin_quickstart.gin",
  "gin/precision/bfloat16.gin",
  "gin/mesh/zero3.gin",
)
KERNELS = ("reference", "associative", "pallas_tpu")
LENGTHS = (2048, 4096, 8192)
# The paper's labels on TPU v3, as read off its figures: by size, the kernel and the model.
PAPER_KERNELS = {
  "400m": {"reference": 1.0, "associative": 1.58, "pallas_tpu": 0.85},
  "1b": {"reference": 1.0, "associative": 1.41, "pallas_tpu": 0.81},
  "7b": {"reference": 1.0, "associative": 1.27, "pallas_tpu": 0.89},
}
PAPER_LENGTHS = {
  "400m": {"transformer": (1.0, 1.17, 1.46), "griffin": (0.93, 0.96, 0.98)},
  "1b": {"transformer": (1.0, None, 1.12), "griffin": (0.97, 0.99, 1.01)},
}


def step_seconds(options: argparse.Namespace, model: str, kernels: str, length: int) -> float:
  """Returns the expected seconds of a training step, planned in a process of its own.

  Raises:
    SystemExit: the plan fails or does not fit; its last lines are shown.
  """
  rows = options.tokens // length
  macros = {"VOCAB_SIZE": 32768, "SEQUENCE_LENGTH": length, "BATCH_SIZE": rows, "WINDOW": 1024}
  if model != "griffin":
    del macros["WINDOW"]
  with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "plan.json"
    command = [sys.executable, "-m", "launch.plan", *FILES, f"gin/models/{model}.gin"]
    command += [f"gin/sizes/{options.size}.gin", f"gin/kernels/{kernels}.gin"]
    command += [f"--hardware={options.hardware}", f"--json={out}"]
    command += [f"--gin.{name}={value}" for name, value in macros.items()]
    command += [f"--gin.models.backbone.Backbone.remat={options.remat}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      shown = "\n".join((done.stderr + done.stdout).splitlines()[-5:])
      raise SystemExit(f"{' '.join(command)}\nends with {done.returncode}:\n{shown}")
    (found,) = json.loads(out.read_text())
  print(
    f"{model}, {kernels}, {rows} x {length}: {found['expected_seconds']:.4f} s", file=sys.stderr
  )
  return found["expected_seconds"]


def _cell(value: float | None) -> str:
  return "-" if value is None else f"{value:.2f}"


def kernel_table(options: argparse.Namespace) -> str:
  """Formats the step of Hawk by recurrence kernel."""
  seconds = {kernel: step_seconds(options, "hawk", kernel, LENGTHS[0]) for kernel in KERNELS}
  paper = PAPER_KERNELS.get(options.size, {})
  lines = [
    f"| Hawk {options.size}, {options.hardware} | expected, s | relative | paper, v3 |",
    "|---|---|---|---|",
  ]
  lines += [
    f"| {kernel} | {time:.4f} | {time / seconds['reference']:.2f} | {_cell(paper.get(kernel))} |"
    for kernel, time in seconds.items()
  ]
  return "\n".join(lines)


def length_table(options: argparse.Namespace) -> str:
  """Formats the step of the baseline and of Griffin by sequence length."""
  reference = None
  lines = [
    f"| {options.size}, {options.hardware} | tokens per row | expected, s | relative | paper, v3 |",
    "|---|---|---|---|---|",
  ]
  for model in ("transformer", "griffin"):
    paper = PAPER_LENGTHS.get(options.size, {}).get(model, (None,) * len(LENGTHS))
    for length, label in zip(LENGTHS, paper, strict=True):
      time = step_seconds(options, model, "pallas_tpu", length)
      reference = reference or time
      lines.append(
        f"| {model} | {length:,} | {time:.4f} | {time / reference:.2f} | {_cell(label)} |"
      )
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--hardware", default="v3-8")
  parser.add_argument("--size", default="400m", help="a file of gin/sizes/")
  parser.add_argument("--tokens", type=int, default=65536, help="tokens of a step")
  parser.add_argument("--remat", default="full")
  options = parser.parse_args()
  print(kernel_table(options))
  print(f"\n{length_table(options)}")


if __name__ == "__main__":
  main()
