"""Prepares the rows of a run ahead of time: `python -m launch.prepare CONFIG`."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if not __package__:  # started by its path
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from base import commands, paths
from base.wording import plural
from launch import command

if TYPE_CHECKING:
  from experiment.experiment import Experiment

DESCRIPTION = """\
Tokenizes the text of a run and packs it into rows, which launch.train then finds in the cache.

A large corpus is cut into shards, which all cores pack. A preparation that was killed continues
with the missing shards. --part=I/N packs a share of them, for N machines that see the same files;
launch.prepare without it, or launch.train, then joins the shards."""


def parser() -> command.Parser:
  """Builds the argument parser of the command."""
  result = command.parser("prepare", DESCRIPTION)
  result.add_argument("config", nargs="+", help="gin files of a run; later ones win")
  result.add_argument(
    "--workers", type=int, help="number of processes (default: one per core of this machine)"
  )
  result.add_argument("--part", help="I/N: pack only the I-th of N shares of the shards, I from 1")
  result.add_argument(
    "--verify", action="store_true", help="read all rows and compare their checksums"
  )
  result.add_argument(
    "--show",
    type=int,
    default=0,
    help="print so many packed rows as text (with --stats: on stderr)",
  )
  result.add_argument(
    "--stats",
    action="store_true",
    help="print statistics of the rows as JSON on stdout, with the outcome of --verify",
  )
  return result


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status."""
  options = parser()
  args, bindings = command.parse(options, arguments)
  part = None
  if args.part is not None:
    found = re.fullmatch(r"(\d+)/(\d+)", args.part)
    part = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part[0] <= part[1]:
      options.error(f"--part={args.part} must be I/N, with I from 1 to N")
    command.refuse(options, args, ("verify", "show", "stats"), "with --part")
  if args.workers is not None and args.workers < 1:
    options.error(f"--workers={args.workers} must be at least 1")
  if args.show < 0:
    options.error(f"--show={args.show} must not be negative")
  from data import preparation
  from experiment import experiment as experiment_lib

  experiment = experiment_lib.build(experiment_lib.load(args.config, bindings))
  with experiment_lib.naming_flags():
    preparation.prepare(experiment.texts(), workers=args.workers, part=part, own_command=True)
    if part is None:
      _look(experiment, args)
      run_dir = paths.free(Path("runs") / Path(args.config[0]).stem)
      command.tell_next(*commands.words("train"), *args.config, *bindings, f"--run_dir={run_dir}")
    else:
      print(f"share {args.part} is prepared; the same command without --part joins all shares")
  return 0


def _look(experiment: Experiment, args: Any) -> None:
  """Opens the rows, checks them, and prints what was asked for."""
  from data import look, verification
  from data.mixture import MixedRows

  found = {}
  for name, data in (("train", experiment.train_data), ("heldout", experiment.eval_data)):
    rows = data.rows()
    parts = rows.parts if isinstance(rows, MixedRows) else (rows,)
    for part in parts:
      if args.verify:
        verification.verify(part, completely=True)
    if args.stats:
      # A wrong checksum ends the command, so there is no other value.
      found[name] = look.statistics(rows) | ({"checksums": "right"} if args.verify else {})
    if args.show:
      out = sys.stderr if args.stats else sys.stdout  # A program reads the JSON.
      colour = out.isatty() and "NO_COLOR" not in os.environ
      for part in parts:
        _show(part, args.show, colour, out)
      if args.verify:
        print(f"{name}: all checksums are right", file=out)
    elif not args.stats:
      total = sum(part.counts.tokens for part in parts)
      verified = "; all checksums are right" if args.verify else ""
      print(f"{name}: {plural(len(rows), 'row')}, {plural(total, 'token')}{verified}")
  if args.stats:
    print(json.dumps(found, indent=2, ensure_ascii=False))


def _show(rows: Any, count: int, colour: bool, out: TextIO) -> None:
  from data import look

  print(f"=== {rows.directory}", file=out)
  for number in range(min(count, len(rows))):
    print(f"--- row {number}", file=out)
    print(look.shown_row(rows, number, colour=colour), file=out)
  print(look.described(look.statistics(rows)), file=out)


if __name__ == "__main__":
  command.run(main)
