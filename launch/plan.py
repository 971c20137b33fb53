"""Plans a run on other hardware: `python -m launch.plan gin/runs/x.gin --hardware=v5e-256`."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started by its path
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from base import commands, paths
from base.errors import UserError
from launch import command, planned_hardware
from training import json_files

if TYPE_CHECKING:
  from config.config import Config
  from experiment.experiment import Experiment
  from planning.hardware.chip import Hardware
  from planning.record import Plan

DESCRIPTION = """\
Compiles a training step, an evaluation, a prefill or a decode step for TPUs or GPUs that need not
be attached, and prints memory, collectives, the expected time and the roofline time. Later gin
files override earlier ones:

  python -m launch.plan gin/runs/griffin_quickstart.gin gin/sizes/7b.gin \\
    gin/mesh/megatron8_zero1.gin \\
    --hardware=v5e-256 --gin.BATCH_SIZE=512 --gin.SEQUENCE_LENGTH=2048

Several models in one table:

  python -m launch.plan ... --models=griffin,hawk,transformer"""


def parser() -> command.Parser:
  """Builds the argument parser of the command."""
  result = command.parser("plan", DESCRIPTION)
  result.add_argument("config", nargs="+", help="gin files; later ones win")
  result.add_argument(
    "--hardware",
    required=True,
    help=planned_hardware.HELP,
  )
  result.add_argument(
    "--step",
    choices=("train", "evaluate", "prefill", "decode"),
    default="train",
    help="a training step, an evaluation or a prefill of a batch of rows, or one decoded token for "
    "each of them (default: %(default)s)",
  )
  result.add_argument(
    "--models",
    type=lambda names: names.split(","),
    help="models of gin/models/ to plan, each after the other files: griffin,hawk,transformer",
  )
  result.add_argument(
    "--search",
    action="store_true",
    help="find the fastest mesh, ZeRO stage, remat policy and number of microbatches",
  )
  result.add_argument(
    "--compiles",
    type=int,
    default=16,
    help="the most steps that --search compiles (default: %(default)s)",
  )
  result.add_argument("--json", type=paths.json_argument, help="also write all plans to this file")
  result.add_argument(
    "--timeline",
    type=paths.json_argument,
    help="also write the expected timeline of the best plan to this file, as JSON that Perfetto "
    "and XProf open",
  )
  return result


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status: 1 if a model does not fit."""
  options = parser()
  args, bindings = command.parse(options, arguments)
  if not args.search:
    command.refuse(options, args, ("compiles",), "without --search")
  if args.timeline and len(args.models or ()) > 1:
    options.error("--timeline takes one model: name one in --models")
  if args.search and args.step != "train":
    options.error("--search needs --step=train: other steps have no ZeRO stage or remat policy")

  hardware = planned_hardware.choose(args.hardware)

  from experiment import experiment as experiment_lib
  from experiment.run_directory import RunDirectory
  from planning import search, tables

  for option in ("json", "timeline"):
    if file := getattr(args, option):
      RunDirectory(file).require_outside_of_runs(f"--{option}")
  plans: list[Plan] = []
  best: list[Plan | None] = []
  setup: dict[str, list[str]] = {}  # arguments of the best plan, by model
  for name, configuration in _configurations(args, bindings):
    experiment = experiment_lib.build(configuration)
    found = _plans(args, experiment, hardware, name)
    plans += found
    best.append(
      min((p for p in found if p.memory.fits), key=lambda p: p.expected.seconds, default=None)
    )
    if args.search and best[-1] is not None:
      setup[name] = search.arguments(best[-1], search.microbatches_name(configuration))
    if best[-1] is None and found and not args.search:
      best[-1] = found[0]
    if best[-1] is None and args.search:
      tables.tell(
        f"{name}: no setup fits: {experiment.batch_size:,} rows of {experiment.sequence_length:,} "
        f"tokens on {args.hardware}. Use more devices, a batch size that more of them divide, or "
        "smaller parameter types."
      )
  if args.json:
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json_files.dumps([found.record() for found in plans], indent=2) + "\n")
    tables.tell(f"written to {paths.shown(args.json)}")
  shown = [found for found in best if found is not None]
  if args.timeline and not shown:
    file = paths.shown(args.timeline)
    tables.tell(f"--timeline: nothing was planned, so {file} was not written.")
  elif args.timeline and (timeline := shown[0].timeline):
    args.timeline.parent.mkdir(parents=True, exist_ok=True)
    args.timeline.write_text(timeline.trace(f"{shown[0].model} on {shown[0].hardware}"))
    tables.tell(f"written to {paths.shown(args.timeline)}")
  if len(best) > 1 and shown:
    print(tables.side_by_side(shown))
  elif shown:
    print(tables.one(shown[0]))
  if args.search:
    for found in shown:
      print(f"\nTo train {found.model} this way, append: {shlex.join(setup[found.model])}")
  if len(shown) == 1 and args.step == "train":
    model = shown[0].model
    files = [*args.config, *(f"gin/models/{name}.gin" for name in args.models or ())]
    # Not runs/griffin_quickstart, where `make train` has a run with another configuration.
    run_dir = paths.free(Path("runs") / re.sub(r"[^\w.-]", "_", f"{model}_{args.hardware}"))
    found = setup.get(model, [])
    given = _without_replaced([*files, *bindings], found)
    command.tell_next(*commands.words("train"), *given, f"--run_dir={run_dir}", *found)
  return 0 if all(found is not None and found.memory.fits for found in best) else 1


def _configurations(args: argparse.Namespace, bindings: Sequence[str]) -> list[tuple[str, Config]]:
  """Loads the configuration of each model; returns (name, configuration)."""
  from experiment import experiment as experiment_lib

  if not args.models:
    return [(Path(args.config[0]).stem, experiment_lib.load(args.config, bindings))]
  found = [
    (name, experiment_lib.load([*args.config, f"models/{name}.gin"], bindings, shared=True))
    for name in args.models
  ]
  useless = set.intersection(*(set(configuration.warnings) for _, configuration in found))
  for warning in sorted(useless):
    if warning.startswith("--gin."):
      raise UserError(f"{warning}: no model uses it. Remove it.")
  return found


def _without_replaced(given: Sequence[str], setup: Sequence[str]) -> list[str]:
  """Leaves out gin files that a found setup names too, and bindings that it replaces."""
  from config import source

  def name(argument: str) -> str:
    if argument.startswith(source.OVERRIDE_PREFIX):
      return argument.partition("=")[0]
    return str(source.find(argument, None, None))

  replaced = set(map(name, setup))
  return [argument for argument in given if name(argument) not in replaced]


def _plans(
  args: argparse.Namespace, experiment: Experiment, hardware: Hardware, name: str
) -> list[Plan]:
  """Plans an experiment, or searches its setups; [] if the compiler says that it does not fit."""
  from planning import plan, search, tables

  if args.search:
    return search.search(experiment, hardware, model=name, compiles=args.compiles)
  try:
    return [plan.plan(experiment, hardware, step=args.step, model=name, tell=tables.tell)]
  except MemoryError as error:
    tables.tell(f"{name}: does not fit: {error}")
    return []


if __name__ == "__main__":
  command.run(main)
