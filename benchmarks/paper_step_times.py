"""Section 4 of the Griffin paper without a TPU: expected step times beside the paper's figures.

    python -m benchmarks.paper_step_times                     # 400M on v3-8: nine plans
    python -m benchmarks.paper_step_times --sizes=400m,1b,7b --hardware=v3,v5e --keep=runs/paper \\
      --chart=runs/paper.png

Two tables, in Markdown. The first is the step of Hawk with each recurrence kernel, relative to the
scan that JAX offers (section 4.2). The second is the step at a fixed number of tokens, relative to
the baseline at 2,048 (section 4.3). Times are those of `launch.plan`. With `--keep`, a step that
was planned before is not planned again. No TPU is needed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from base import paths, small_files
from base.errors import UserError
from launch import planned_hardware
from training import json_files

FILES = (
  "gin/runs/griffin_quickstart.gin",
  "gin/precision/bfloat16.gin",
  "gin/mesh/zero3.gin",
)
KERNELS = ("reference", "associative", "pallas_tpu")
LENGTHS = (2048, 4096, 8192)
# Devices on which a size has room; v3, v4 and v5p count cores in the names of slices.
DEVICES = {"400m": 8, "1b": 8, "7b": 64}
_CORES_PER_DEVICE = {"v4": 2, "v5p": 2}
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


class Step(NamedTuple):
  """A step to plan: a model of a size with its kernels, rows of `length` tokens, on a slice."""

  generation: str
  size: str
  model: str
  kernels: str
  length: int

  @property
  def hardware(self) -> str:
    """The slice's name."""
    devices = DEVICES[self.size] * _CORES_PER_DEVICE.get(self.generation, 1)
    return f"{self.generation}-{devices}"

  @property
  def name(self) -> str:
    """A name for a file."""
    return f"{self.hardware}_{self.size}_{self.model}_{self.kernels}_{self.length}"


def steps(generation: str, size: str) -> Iterator[Step]:
  """The steps of both tables."""
  for kernels in KERNELS:
    yield Step(generation, size, "hawk", kernels, LENGTHS[0])
  for model in PAPER_LENGTHS["400m"]:
    for length in LENGTHS:
      yield Step(generation, size, model, "pallas_tpu", length)


def plan_of(step: Step, tokens: int, remat: str) -> dict[str, Any]:
  """Plans a step; returns the plan's record.

  Args:
    step: the step.
    tokens: of a step, per device.
    remat: a name of `layers.remat.POLICIES`.

  Raises:
    SystemExit: the step does not fit, or there is no compiler; the message says so.
  """
  from experiment import experiment
  from planning import plan, tables

  try:
    hardware = planned_hardware.choose(step.hardware)
  except UserError as error:
    raise SystemExit(f"error: {error}") from None
  macros: dict[str, Any] = {
    "VOCAB_SIZE": 32768,
    "SEQUENCE_LENGTH": step.length,
    "BATCH_SIZE": tokens * hardware.device_count // step.length,
    "models.backbone.Backbone.remat": remat,
  }
  if step.model == "griffin":
    macros["WINDOW"] = 1024
  files = [*FILES, f"gin/models/{step.model}.gin"]
  files += [f"gin/sizes/{step.size}.gin", f"gin/kernels/{step.kernels}.gin"]
  bindings = [f"--gin.{name}={value}" for name, value in macros.items()]
  built = experiment.build(experiment.load(files, bindings))
  try:
    return plan.plan(built, hardware, model=step.name, tell=tables.tell).record()
  except MemoryError as error:
    raise SystemExit(f"error: {step.name} does not fit: {error}") from None


def _cell(value: float | None) -> str:
  return "-" if value is None else f"{value:.2f}"


def kernel_table(generation: str, size: str, found: dict[Step, dict[str, Any]]) -> str:
  """Formats the step of Hawk by recurrence kernel."""
  listed = [Step(generation, size, "hawk", kernels, LENGTHS[0]) for kernels in KERNELS]
  paper = PAPER_KERNELS.get(size, {})
  lines = [
    f"| Hawk {size}, {listed[0].hardware} | expected, s | relative | paper, v3 |",
    "|---|---|---|---|",
  ]
  for step in listed:
    seconds = found[step]["expected_seconds"]
    relative = seconds / found[listed[0]]["expected_seconds"]
    label = _cell(paper.get(step.kernels))
    lines.append(f"| {step.kernels} | {seconds:.4f} | {relative:.2f} | {label} |")
  return "\n".join(lines)


def length_table(generation: str, size: str, found: dict[Step, dict[str, Any]]) -> str:
  """Formats the step of the baseline and of Griffin by sequence length."""
  hardware = Step(generation, size, "griffin", "pallas_tpu", LENGTHS[0]).hardware
  lines = [
    f"| {size}, {hardware} | tokens per row | expected, s | relative | paper, v3 |",
    "|---|---|---|---|---|",
  ]
  for model, length, relative, label in _by_length(generation, size, found):
    seconds = found[Step(generation, size, model, "pallas_tpu", length)]["expected_seconds"]
    lines.append(f"| {model} | {length:,} | {seconds:.4f} | {relative:.2f} | {_cell(label)} |")
  return "\n".join(lines)


def _by_length(
  generation: str, size: str, found: dict[Step, dict[str, Any]]
) -> Iterator[tuple[str, int, float, float | None]]:
  """(model, tokens per row, time relative to the baseline's at 2,048, the paper's label)."""
  reference = Step(generation, size, "transformer", "pallas_tpu", LENGTHS[0])
  for model in ("transformer", "griffin"):
    labels = PAPER_LENGTHS.get(size, {}).get(model, (None,) * len(LENGTHS))
    for length, label in zip(LENGTHS, labels, strict=True):
      seconds = found[Step(generation, size, model, "pallas_tpu", length)]["expected_seconds"]
      yield model, length, seconds / found[reference]["expected_seconds"], label


def draw(
  generations: list[str], sizes: list[str], found: dict[Step, dict[str, Any]], file: Path
) -> None:
  """Draws the expected ratios of each generation beside the paper's labels."""
  from matplotlib.figure import Figure

  canvas = Figure(figsize=(3.4 * len(sizes), 5.6), layout="constrained")
  axes = canvas.subplots(2, len(sizes), squeeze=False)
  for column, size in enumerate(sizes):
    upper, lower = axes[0][column], axes[1][column]
    width = 0.8 / (len(generations) + 1)
    for place, generation in enumerate(generations):
      times = [
        found[Step(generation, size, "hawk", kernels, LENGTHS[0])]["expected_seconds"]
        for kernels in KERNELS
      ]
      at = [index + place * width for index in range(len(KERNELS))]
      upper.bar(at, [time / times[0] for time in times], width, label=generation)
      ratios = list(_by_length(generation, size, found))
      for model, dashes in (("transformer", "--"), ("griffin", "-")):
        line = [relative for name, _, relative, _ in ratios if name == model]
        lower.plot(LENGTHS, line, dashes, color=f"C{place}", label=f"{model}, {generation}")
    labels = PAPER_KERNELS.get(size, {})
    at = [index + len(generations) * width for index in range(len(KERNELS))]
    upper.bar(at, [labels.get(k, math.nan) for k in KERNELS], width, color="k", label="paper, v3")
    for model, marker in (("transformer", "^"), ("griffin", "o")):
      known = PAPER_LENGTHS.get(size, {}).get(model, (None,) * len(LENGTHS))
      line = [math.nan if label is None else label for label in known]
      lower.plot(LENGTHS, line, marker, color="k", label=f"{model}, paper, v3")
    upper.set_xticks([index + 0.4 - width / 2 for index in range(len(KERNELS))], KERNELS)
    upper.set_title(f"Hawk {size} by kernel, relative to the scan", fontsize=9)
    lower.set_title(f"{size} by length, relative to the baseline", fontsize=9)
    lower.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    lower.set_xlabel("tokens per row")
  axes[0][0].legend(fontsize=7)
  axes[1][0].legend(fontsize=6)
  file.parent.mkdir(parents=True, exist_ok=True)
  canvas.savefig(file, dpi=110)


def _choose(parser: argparse.ArgumentParser, option: str, given: str, known: list[str]):
  chosen = given.split(",")
  for name in chosen:
    if name not in known:
      parser.error(f"--{option}: {name!r} is unknown; choose from {', '.join(known)}")
  return chosen


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--hardware", default="v3", help="TPU generations: v3,v5e,v5p,v6e")
  parser.add_argument("--sizes", default="400m", help=f"of {', '.join(DEVICES)}")
  parser.add_argument("--tokens", type=int, default=8192, help="tokens of a step, per device")
  parser.add_argument("--remat", default="full", help="the remat policy")
  parser.add_argument("--keep", type=paths.local_argument, help="a folder for the plans' files")
  parser.add_argument(
    "--chart", type=paths.output_argument, help="also draw the ratios to this PNG"
  )
  options = parser.parse_args()
  sizes = _choose(parser, "sizes", options.sizes, list(DEVICES))

  from planning.hardware import tpu

  generations = _choose(parser, "hardware", options.hardware, list(tpu.GENERATIONS))
  found: dict[Step, dict[str, Any]] = {}
  for generation in generations:
    for size in sizes:
      for step in steps(generation, size):
        found[step] = _planned(step, options)
        seconds = found[step]["expected_seconds"]
        print(f"{step.name}: {seconds:.4f} s", file=sys.stderr, flush=True)
      print(f"{kernel_table(generation, size, found)}\n", flush=True)
      print(f"{length_table(generation, size, found)}\n", flush=True)
  if options.chart:
    draw(generations, sizes, found, options.chart)


def _planned(step: Step, options: argparse.Namespace) -> dict[str, Any]:
  """The record of a step's plan, from the folder that keeps them or made now."""
  if options.keep is None:
    return plan_of(step, options.tokens, options.remat)
  file = options.keep / f"{step.name}_{options.tokens}_{options.remat}.json"
  if not file.exists():
    options.keep.mkdir(parents=True, exist_ok=True)
    record = plan_of(step, options.tokens, options.remat)
    small_files.replace(file, json_files.dumps(record))
  return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
  main()
