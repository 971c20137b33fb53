"""Plans a training run on TPUs that are not here: `python -m launch.plan gin/runs/x.gin --hardware=v5e-256`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch import command

if TYPE_CHECKING:
  from launch.planning import Plan
  from parallel.topology import Slice

DESCRIPTION = """\
Compiles the training step of a gin file for TPUs that are not here, and says whether it fits, what it
sends, and the least time that a step can take. Later gin files replace bindings of earlier ones:

  python -m launch.plan gin/runs/griffin_quickstart.gin gin/sizes/7b.gin gin/mesh/megatron8_zero1.gin \\
    --hardware=v5e-256 --gin.BATCH_SIZE=512 --gin.SEQUENCE_LENGTH=2048"""


def parser() -> argparse.ArgumentParser:
  """The command's arguments."""
  result = command.parser("plan", DESCRIPTION)
  result.add_argument("config", nargs="+", help="gin files; a later one wins")
  result.add_argument(
    "--hardware",
    required=True,
    help="a TPU slice: v3-32, v4-64, v5e-256, v5p-128, v6e-64, v5p:4x4x8",
  )
  result.add_argument(
    "--search",
    action="store_true",
    help="find mesh, ZeRO stage, remat policy and microbatches for the batch size",
  )
  result.add_argument(
    "--compiles", type=int, default=16, help="most steps that a search compiles (%(default)s)"
  )
  result.add_argument("--json", type=Path, help="write the plans to this file too")
  return result


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status: 1 if nothing fits."""
  args, bindings = command.parse(parser(), arguments)
  # The TPU compiler is asked by name; the program itself runs on the CPU.
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  # Where libtpu finds neither, it prints half a page; compiling needs neither.
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else a lock file admits one process

  from launch import experiment as experiment_lib
  from launch import planning
  from parallel import topology

  try:
    slice_ = topology.slice_of(args.hardware)
    slice_.devices  # noqa: B018 - a slice that the compiler does not know is refused here
  except ValueError as error:
    raise command.UserError(str(error)) from None
  experiment = experiment_lib.build(experiment_lib.load(args.config, bindings))
  plans = []
  candidates = planning.variants(experiment, slice_) if args.search else [experiment]
  for _, candidate in zip(range(args.compiles), candidates, strict=False):
    try:
      plans.append(planning.plan(candidate, slice_))
    except MemoryError as error:
      print(f"{_choices(candidate)}: does not fit: {error}", file=sys.stderr, flush=True)
      continue
    except planning.ConfigError as error:
      if not args.search:
        raise
      print(f"{_choices(candidate)}: {error}", file=sys.stderr, flush=True)
      continue
    if args.search:
      _tell_candidate(plans[-1])
    if args.search and plans[-1].fits:
      break  # candidates come in the order of their cost
  if args.json:
    args.json.parent.mkdir(parents=True, exist_ok=True)
    records = [found.record(slice_.chip.flops) for found in plans]
    args.json.write_text(json.dumps(records, indent=2) + "\n")
  fitting = [found for found in plans if found.fits]
  if not plans or (args.search and not fitting):
    print(f"nothing of what was compiled fits {args.hardware}", file=sys.stderr)
    return 1
  best = min(fitting or plans, key=lambda found: found.seconds)
  print(text(best, slice_))
  return 0 if best.fits else 1


def _choices(experiment) -> str:
  mesh = experiment.mesh.mesh if experiment.mesh else None
  sizes = f"data={mesh.data} seq={mesh.seq} model={mesh.model}" if mesh else "data=-1"
  stage = experiment.mesh.zero if experiment.mesh else 0
  accumulate = experiment.options.step.accumulate
  return f"{sizes}, ZeRO {stage}, remat {experiment.model.remat}, {accumulate} microbatches"


def _tell_candidate(found: Plan) -> None:
  mesh = " ".join(f"{name}={size}" for name, size in found.mesh.items())
  print(
    f"{mesh}, ZeRO {found.zero}, remat {found.remat}, {found.accumulate} microbatches: "
    f"{found.bytes / 2**30:.2f} of {found.memory / 2**30:.0f} GiB, {found.seconds:.3f} s "
    f"({found.bound})",
    file=sys.stderr,
    flush=True,
  )


def text(found: Plan, slice_: Slice) -> str:
  """A plan as tables."""
  from launch.describe import show_bytes, table

  mesh = " x ".join(f"{name}={size}" for name, size in found.mesh.items())
  over = found.memory - found.bytes
  head = [
    ("hardware", f"{found.hardware} ({slice_.topology}), {found.devices} devices"),
    ("mesh", f"{mesh}, ZeRO stage {found.zero}"),
    (
      "batch",
      f"{found.batch_size:,} rows of {found.length:,} tokens, {found.accumulate} microbatches",
    ),
    ("remat", found.remat),
  ]
  memory = [
    ("parameters", show_bytes(found.parameter_bytes)),
    ("optimizer state", show_bytes(found.optimizer_bytes)),
    ("batch", show_bytes(found.batch_bytes)),
    ("gradients, activations, temporaries", show_bytes(found.temporary_bytes)),
    ("in all, per device", f"{show_bytes(found.bytes)} of {show_bytes(found.memory)}"),
    (
      "fits" if found.fits else "DOES NOT FIT",
      f"{show_bytes(abs(over))} {'left' if over >= 0 else 'too much'}",
    ),
  ]
  sent = [("collective", "mesh axis", "count", "bytes sent per device")]
  sent += [
    (one.kind, one.axes or "-", f"{one.count:,}", show_bytes(one.sent)) for one in found.collectives
  ]
  times = [
    ("compute", f"{found.compute_seconds:.4f} s"),
    ("HBM", f"{found.hbm_seconds:.4f} s ({show_bytes(found.hbm_bytes)})"),
    ("interconnect", f"{found.interconnect_seconds:.4f} s"),
    ("bound by", f"{found.bound}: {found.seconds:.4f} s a step"),
    ("tokens per second", f"{found.tokens_per_second:,.0f}"),
    ("model-FLOPs utilisation at that bound", f"{found.utilisation(slice_.chip.flops):.1%}"),
    ("FLOPs per device, model's own", f"{found.model_flops:.4g}"),
    ("FLOPs per device, compiled products", f"{found.counted_flops:.4g}"),
    ("compilation", f"{found.compile_seconds:.1f} s"),
  ]
  if found.xla_flops is not None:
    counts = f"{found.once_flops:.4g} / {found.xla_flops:.4g}"
    times.append(("the same, loops once / XLA's count, all operations", counts))
  if found.optimal_seconds is not None:
    times.append(("XLA's optimal_seconds, loops once", f"{found.optimal_seconds:.4f} s"))
  return "\n\n".join(
    [
      table(head, right=()),
      table(memory, right=(1,)),
      table(sent, right=(2, 3)),
      table(times, right=()),
    ]
  )


if __name__ == "__main__":
  command.run(main)
