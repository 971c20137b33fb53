"""Trains a grid of runs: `python -m launch.sweep gin/runs/x.gin --over LEARNING_RATE=1e-3,2e-3`."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if not __package__:  # started by its path
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from base import commands, paths
from base.wording import plural
from experiment import directory_owner, trust
from launch import command, hosts

# Slow imports are made where they are used, so that --help and errors appear at once.
if TYPE_CHECKING:
  from comparison.sweep.cells import Cell
  from comparison.sweep.sweep import Sweep

DESCRIPTION = """\
Trains a run for each combination of values, or for values drawn at random, and shows which is best.

  --over LEARNING_RATE=1e-3,2e-3,4e-3   values of a macro or a parameter
  --over file=gin/models/hawk.gin,gin/models/griffin.gin   gin files, one in each run
  --over LEARNING_RATE=log:1e-4:1e-2    a range for --random; uniform:0:0.2 is the other kind

The output folder gets a run directory for each, and sweep.html with their curves. The same command
continues an interrupted sweep, and one with more values trains only what is missing. A run that
diverged is noted and passed over: the exit status is then 1."""


def parser() -> command.Parser:
  """Builds the argument parser of the command."""
  result = command.parser("sweep", DESCRIPTION)
  result.add_argument(
    "config", nargs="+", help="gin files, as of launch.train; later ones win, and the axes over all"
  )
  result.add_argument(
    "--over",
    action="append",
    default=[],
    metavar="NAME=VALUES",
    help="an axis: a name and its values, separated by commas; may be given several times",
  )
  result.add_argument(
    "--output",
    type=paths.argument,
    required=True,
    help="the folder of the sweep; created if missing",
  )
  result.add_argument("--random", type=int, metavar="COUNT", help="draw so many runs at random")
  result.add_argument("--draw_seed", type=int, help="seed of the draws, for --random (default: 0)")
  result.add_argument(
    "--describe", action="store_true", help="print the runs and what they cost, and stop"
  )
  result.add_argument(
    "--collect",
    action="store_true",
    help="train nothing: show what the runs have reached, such as those of --jobs",
  )
  result.add_argument(
    "--jobs",
    type=paths.local_argument,
    metavar="FILE",
    help="train nothing: write a job for each run that is not finished, made from a script as "
    "launch/cluster/slurm.sbatch or a JobSet as launch/cluster/gke_jobset.yaml",
  )
  trust.add_arguments(result)
  hosts.add_arguments(result)
  return result


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status."""
  options = parser()
  args, bindings = command.parse(options, arguments)
  for one, other in (("describe", "collect"), ("describe", "jobs"), ("collect", "jobs")):
    if getattr(args, one):
      command.refuse(options, args, (other,), f"with --{one}")
  if args.random is None:
    command.refuse(options, args, ("draw_seed",), "without --random")
  elif args.random < 1:
    options.error(f"--random={args.random} must be at least 1")
  if (args.draw_seed or 0) < 0:
    options.error(f"--draw_seed={args.draw_seed} must be at least 0")
  if not args.over:
    options.error("no axis is given, such as --over LEARNING_RATE=1e-3,2e-3")
  sweep = _sweep(options, args, bindings)
  if args.describe:
    from experiment.describe import table

    rows = sweep.description()
    print(f"{table(rows, right=(0, 1, 2))}\n\n{plural(len(sweep.cells), 'run')}")
    return 0
  if args.collect:
    _show(sweep)
    return 0
  if args.jobs:
    return _write_jobs(sweep, args)
  hosts.join(args)
  sweep.require_all()
  with directory_owner.owned_by_job(sweep.output) as require_mine:
    return _train(sweep, shlex.join([*commands.words("sweep"), *arguments]), require_mine)


def _sweep(options: command.Parser, args: Any, bindings: list[str]) -> Sweep:
  """Makes the sweep of the arguments."""
  import argparse

  from comparison.sweep import cells as cells_lib
  from comparison.sweep.sweep import Sweep

  try:
    axes = [cells_lib.axis_argument(text) for text in args.over]
  except argparse.ArgumentTypeError as error:
    options.error(f"--over {error}")
  if args.random is None:
    cells = cells_lib.grid(axes)
  else:
    cells = cells_lib.drawn(axes, args.random, args.draw_seed or 0)
  trusted = trust.Trust.of(args.trust)
  return Sweep(tuple(args.config), tuple(bindings), tuple(axes), tuple(cells), args.output, trusted)


def _train(sweep: Sweep, asked_by: str, require_mine: Any) -> int:
  """Trains what is left, and shows the outcome after each run."""
  from parallel import processes
  from planning.hardware import catalogue

  def peak_flops(kind: str) -> float | None:
    chip = catalogue.chip_of(kind)
    return chip and chip.flops

  def left() -> list[Cell]:
    # All processes must agree; the first's files decide.
    names = processes.told_by_first(_names(sweep)).split("\n")
    return [cell for cell in sweep.cells if cell.folder in names]

  planned = left()
  for number, cell in enumerate(planned):
    if number and cell not in left():
      continue  # a job of a cluster has begun it meanwhile
    if processes.is_first():
      print(f"run {number + 1} of {len(planned)}: {cell}", file=sys.stderr)
    summary = sweep.train(cell, asked_by, require_mine=require_mine, peak_flops=peak_flops)
    if processes.is_first():
      if summary is None:
        print(f"failed: {cell}: {sweep.failures()[cell.folder]}", file=sys.stderr)
      _write_page(sweep)
    if summary is not None and summary.interrupted:
      if processes.is_first():
        print(f"stopped at step {summary.step} of {cell}; the same command continues")
      return command.status_of_stop(summary.interrupted)
  if processes.is_first():
    _show(sweep)
  return command.FAILED if any(c.folder in sweep.failures() for c in sweep.cells) else 0


def _names(sweep: Sweep) -> str:
  from parallel import processes

  return "\n".join(cell.folder for cell in sweep.left()) if processes.is_first() else ""


def _show(sweep: Sweep) -> None:
  """Prints the outcome, and writes the page."""
  from comparison.sweep.sweep import PAGE
  from experiment.describe import table

  outcome = sweep.outcome()
  print(table(outcome.rows(), right=(1, 2)))
  print("\n" + "\n".join(outcome.says()))
  for found in outcome.found:
    if found.failed is not None:
      print(f"failed: {found.cell}: {found.failed}")
  if _write_page(sweep):
    print(f"curves are in {paths.shown(sweep.output / PAGE)}")


def _write_page(sweep: Sweep) -> bool:
  """Writes the page if a run has begun; returns whether one has."""
  from base import small_files
  from comparison.page import curves
  from comparison.sweep.sweep import PAGE

  outcome = sweep.outcome()
  runs = [found.run for found in outcome.found if found.run is not None]
  if not runs:
    return False
  made = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
  title = f"Sweep in {paths.shown(sweep.output)}"
  page = curves.page(runs, title, made, outcome.figures(), outcome.says())
  small_files.replace(sweep.output / PAGE, page)
  return True


def _write_jobs(sweep: Sweep, args: Any) -> int:
  from comparison.sweep import jobs

  sweep.require_all()
  left = sweep.left()
  if not left:
    print("every run is finished or failed: there is no job to write")
    return 0
  made = [jobs.Job(str(c), sweep.output / c.folder, sweep.arguments(c)) for c in left]
  words = jobs.write(args.jobs, made, sweep.output)
  print(f"{plural(len(left), 'job')} in {paths.shown(sweep.output)}")
  command.tell_next(*words)
  return 0


if __name__ == "__main__":
  command.run(main)
