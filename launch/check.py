"""Checks a model against the contract of the zoo: `python -m launch.check --model=griffin`."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started by its path
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from base import commands, paths, wording
from launch import command, quick_compilation
from training import json_files

if TYPE_CHECKING:
  from contract.finding import Finding
  from models.language_model import LanguageModel

DEVICES = "--xla_force_host_platform_device_count=8"
DESCRIPTION = """\
Checks that a model meets the contract that the rest of the project relies on: causality, packing,
decoding, recomputation, sharding, precision, costs, checkpoints, learning at other widths with muP,
and the TPU compiler.

The model is one of gin/models/, or your own, which a gin file names by its Python path:

  python -m launch.check --model=griffin
  python -m launch.check my_model.gin --gin.MY_STATE_SIZE=16

It is built at the size of gin/contract.gin; --gin. arguments change its size and other parameters.
Everything runs on eight simulated CPU devices."""


# Letters of the longest name of a check.
_CHECK_WIDTH = 13


def parser() -> command.Parser:
  """Builds the argument parser of the command."""
  result = command.parser("check", DESCRIPTION)
  result.add_argument("config", nargs="*", help="gin files that set MODEL; later ones win")
  result.add_argument("--model", help="a model of gin/models/, such as hawk, or a gin file")
  result.add_argument("--only", help="comma-separated checks to run, such as causality,packing")
  result.add_argument(
    "--widths",
    help="comma-separated multiples of WIDTH at which the check 'widths' compares steps with muP, "
    "such as 64,128,256 (default: 4 WIDTH)",
  )
  result.add_argument(
    "--json", type=paths.json_argument, help="also write the findings to this file"
  )
  return result


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status: 1 if the contract is broken."""
  options = parser()
  args, bindings = command.parse(options, arguments)
  if not args.config and not args.model:
    options.error("no model is given. Name a gin file, or --model=NAME")
  for binding in bindings:
    name = binding.removeprefix("--gin.").partition("=")[0]
    if name == "DEPTH" or name.endswith(".Backbone.depth"):
      options.error(
        f"{binding} has no effect: the depth is two repeats of the model's pattern and a remainder"
      )
  _play_devices()

  import contract
  from config import source
  from contract.subject import Subject
  from experiment import model_zoo, run_config
  from experiment.run_directory import RunDirectory

  if args.json:
    RunDirectory(args.json).require_outside_of_runs("--json")
  only = [name.strip() for name in args.only.split(",")] if args.only else list(contract.CHECKS)
  if unknown := [name for name in only if name not in contract.CHECKS]:
    options.error(f"unknown check: {unknown[0]!r}{wording.near(unknown[0], contract.CHECKS)}")
  own = [file for file in args.config if model_zoo.sets_model(source.read_file(file))]
  if args.model and own:
    options.error(f"{own[0]} and --model={args.model} are two models. Give one")
  paths = [*args.config, *([model_zoo.file_of(args.model)] if args.model else [])]
  model, macros = model_zoo.build(paths, bindings)
  macros["DEPTH"] = str(Subject(model).model.depth)  # The contract sets it, by the pattern.
  factors = (4,)
  if args.widths:
    width = int(macros["WIDTH"])
    given = [word.strip() for word in args.widths.split(",")]
    wrong = [w for w in given if not w.isdecimal() or int(w) <= width or int(w) % width]
    if wrong:
      options.error(f"--widths: {wrong[0]!r} is no multiple of WIDTH={width}, from {2 * width} on")
    factors = tuple(int(word) // width for word in given)

  def wider(factor: int) -> LanguageModel:
    return model_zoo.build(paths, bindings, factor)[0]

  print(f"{', '.join(paths)} at {', '.join(f'{name}={size}' for name, size in macros.items())}")
  began, records = time.monotonic(), []
  for name, finding in contract.run(model, only, wider, factors):
    print(line(name, finding), flush=True)
    records.append({"check": name, **dataclasses.asdict(finding)})
  if args.json:
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json_files.dumps(records, indent=2) + "\n", encoding="utf-8")
  counts = {o: sum(r["outcome"] == o for r in records) for o in ("passed", "failed", "refused")}
  counts["not run"] = len(records) - sum(counts.values())
  shown = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
  print(f"{shown} in {time.monotonic() - began:.0f} s")
  if not counts["failed"]:
    start = [] if run_config.is_whole(paths) else ["gin/runs/griffin_quickstart.gin"]
    run_dir = f"--run_dir=runs/{Path(paths[-1]).stem}"
    files = [f"gin/{path}" if path.startswith("models/") else path for path in paths]
    command.tell_next(*commands.words("train"), *start, *files, run_dir, *bindings)
  return 1 if counts["failed"] else 0


def line(check: str, finding: Finding) -> str:
  """Formats one line of the table."""
  sizes = ""
  if finding.difference is not None:
    sizes = f"{finding.difference:.1e} of {finding.allowed:.1e}"
  why = finding.says if finding.outcome != "passed" else ""
  notes = "; ".join(filter(None, (finding.where, why)))
  # Sizes before the case: only the last columns may have any length.
  row = f"{finding.outcome:8}  {check:{_CHECK_WIDTH}}  {sizes:18}  {finding.case}"
  return f"{row}  ({notes})" if notes else row


def _play_devices() -> None:
  """Simulates eight CPU devices; call before JAX is imported."""
  if "jax" in sys.modules:
    return  # the caller has chosen the devices
  from planning.hardware import catalogue

  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), DEVICES, *quick_compilation.FLAGS]
  ).strip()
  # Simulated CPU devices wait for each other in threads: with one per core, they wait for ever.
  os.environ.setdefault("NPROC", "64")
  # For the TPU compiler.
  for name, value in catalogue.hardware("v5e-4").environment.items():
    os.environ.setdefault(name, value)


if __name__ == "__main__":
  command.run(main)
