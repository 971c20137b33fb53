"""Lists runs and draws their curves: `python -m launch.runs runs --page=runs.html`."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Sequence

if not __package__:  # started by its path
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from base import paths
from base.errors import UserError
from launch import command

# Slow imports are made where they are used, so that --help and errors appear at once.

DESCRIPTION = """\
Lists the runs in a folder: state, step, loss, speed, and where their configurations differ.

It reads files alone, so it works while runs train. A state is: training; finished; stopped (the
same command continues it); killed (it ended without a word; the same command continues it)."""


def parser() -> command.Parser:
  """Builds the argument parser of the command."""
  result = command.parser("runs", DESCRIPTION, takes_bindings=False)
  result.add_argument(
    "folder",
    type=paths.argument,
    help="a folder with run directories at any depth, or one run; also in a bucket",
  )
  result.add_argument(
    "--page",
    type=paths.page_argument,
    help="also write a page, one self-contained HTML file, with the runs' curves",
  )
  return result


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status."""
  args, _ = command.parse(parser(), arguments)
  folder = paths.shown(args.folder)
  if not args.folder.is_dir():
    raise UserError(f"{folder} is no folder. Name one with run directories, such as runs.")
  from base import small_files
  from comparison.page import curves
  from experiment import describe, run_list
  from experiment.run_directory import RunDirectory

  if args.page:
    RunDirectory(args.page).require_outside_of_runs("--page")
  runs = run_list.runs_in(args.folder)
  if not runs:
    raise UserError(f"{folder} has no runs: no folder in it has a metrics.jsonl. Name another.")
  different = run_list.differences(runs)
  rows: list[tuple[str, ...]] = [
    ("run", "state", "step", "bits/byte", "held out", "tokens/s", "differs in")
  ]
  for number, run in enumerate(runs):
    own = [f"{name}={texts[number]}" for name, texts in different.items() if texts[number]]
    rows.append((*curves.row(run), _cut("  ".join(own))))
  print(describe.table(rows, right=(2, 3, 4, 5)))
  if args.page:
    made = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
    args.page.parent.mkdir(parents=True, exist_ok=True)
    small_files.replace(args.page, curves.page(runs, f"Runs in {folder}", made))
    print(f"\ncurves are in {paths.shown(args.page)}")
  return 0


def _cut(text: str, most: int = 120) -> str:
  return text if len(text) <= most else f"{text[: most - 4]} ..."


if __name__ == "__main__":
  command.run(main)
