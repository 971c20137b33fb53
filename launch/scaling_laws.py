"""Fits scaling laws to trained runs: `python -m launch.scaling_laws runs.csv`."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Sequence

if not __package__:  # started by its path
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from base import paths
from base.errors import UserError
from experiment import trust
from launch import command

# Slow imports are made where they are used, so that --help and errors appear at once.

DESCRIPTION = """\
Fits L(N, D) = E + A/N^alpha + B/D^beta to the held-out losses of trained runs, model by model, and
tells the best size for a number of FLOPs, with intervals over resampled runs.

The runs are lines of a CSV file with columns parameters, tokens and loss (also flops and model), or
the finished run directories in a folder."""


def parser() -> command.Parser:
  """Builds the argument parser of the command."""
  result = command.parser("scaling_laws", DESCRIPTION, takes_bindings=False)
  result.add_argument("runs", type=paths.argument, help="a CSV file, or a folder of runs")
  result.add_argument(
    "--columns",
    default="",
    metavar="NAME=COLUMN,...",
    help="the file's own names, such as parameters=n_params,loss=val_loss",
  )
  result.add_argument(
    "--budgets",
    type=_budgets,
    metavar="FLOPS,...",
    help="training FLOPs to find the best size for (default: from those of the runs to 100 times "
    "as many)",
  )
  result.add_argument(
    "--resamples",
    type=_resamples,
    default=200,
    help="fits to resampled runs, for intervals (default: %(default)s)",
  )
  result.add_argument(
    "--page", type=paths.page_argument, help="also write a page, one self-contained HTML file"
  )
  trust.add_arguments(result)
  return result


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status."""
  args, _ = command.parse(parser(), arguments)
  from comparison import scaling_law_runs
  from comparison.page import scaling_laws as figures_lib
  from comparison.scaling_laws import TooFewRuns, fit, profile_exponent, profiles
  from experiment import describe
  from experiment.run_directory import RunDirectory

  if args.page:
    RunDirectory(args.page).require_outside_of_runs("--page")
  if args.runs.is_dir():
    if args.columns:
      raise UserError("--columns has no effect for run directories. Leave it out.")
    models = scaling_law_runs.read_runs(args.runs, trust.Trust.of(args.trust))
  else:
    models = scaling_law_runs.read_table(args.runs, _columns(args.columns))
  laws, found = {}, {}
  for model, runs in models.items():
    found[model] = profiles(runs)
    try:
      laws[model] = fit(runs, resamples=args.resamples)
    except TooFewRuns as error:
      if len(models) == 1:
        raise UserError(f"{model}: {error}") from None
      print(f"{model} is left out: {error}", file=sys.stderr)
      del found[model]
  if not laws:
    raise UserError(f"{paths.shown(args.runs)} has no model with enough runs for a law.")
  models = {model: models[model] for model in laws}
  per_token = {model: runs.flops_per_parameter for model, runs in models.items()}
  every = [flops for runs in models.values() for flops in runs.flops.tolist()]
  budgets = args.budgets or [max(every) * times for times in (1, 10, 100)]
  rows = [("model", "runs", *figures_lib.VALUES)]
  for model, fitted in laws.items():
    values = [fitted.interval(of) for of in figures_lib.VALUES.values()]
    shown = [f"{v.mean:.4g} ({v.low:.3g} to {v.high:.3g})" for v in values]
    rows.append((model, f"{len(models[model].losses):,}", *shown))
  print(describe.table(rows, right=(1,)))
  print("\nL(N, D) = E + A/N^alpha + B/D^beta; the best N grows as FLOPs^a\n")
  rows = [("model", "FLOPs", "best parameters", "tokens", "loss")]
  for model, fitted in laws.items():
    each = per_token[model]
    for flops in budgets:
      n = fitted.interval(lambda law, c=flops, each=each: law.optimum(c, each)[0])
      d = fitted.interval(lambda law, c=flops, each=each: law.optimum(c, each)[1])
      loss = fitted.interval(lambda law, c=flops, each=each: float(law.loss(*law.optimum(c, each))))
      rows.append(
        (
          model,
          f"{flops:.3g}",
          f"{_count(n.mean)} ({_count(n.low)} to {_count(n.high)})",
          f"{_count(d.mean)} ({_count(d.low)} to {_count(d.high)})",
          f"{loss.mean:.4f} ({loss.low:.4f} to {loss.high:.4f})",
        )
      )
  print(describe.table(rows, right=(1,)))
  for model, profile in found.items():
    if (exponent := profile_exponent(profile)) is not None:
      growth = f"their best N grow as FLOPs^{exponent:.3f}"
      print(f"\n{model}: {len(profile)} budgets of equal FLOPs; {growth}")
  for model, fitted in laws.items():
    if told := figures_lib.says_constant(model, fitted):
      print(f"warning: {told}", file=sys.stderr)
  if args.page:
    figures = figures_lib.figures(laws, found, [min(every), *budgets], per_token)
    _write_page(args, figures, list(laws))
  return 0


def _write_page(args: argparse.Namespace, figures: Sequence, models: Sequence[str]) -> None:
  from base import small_files
  from comparison.page.report import document, figure_element

  made = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
  body = "".join(figure_element(figure, models, "") for figure in figures)
  drawn = f'<section><div class="figures">{body}</div></section>'
  title = f"Scaling laws of {paths.shown(args.runs)}"
  args.page.parent.mkdir(parents=True, exist_ok=True)
  small_files.replace(args.page, document(title, made, "", drawn))
  print(f"\nfigures are in {paths.shown(args.page)}")


def _columns(text: str) -> dict[str, str]:
  from base.wording import near
  from comparison.scaling_law_runs import COLUMNS

  found = {}
  for word in filter(None, text.split(",")):
    name, equals, column = (part.strip() for part in word.partition("="))
    if name not in COLUMNS:
      raise UserError(f"--columns: {word!r} is not NAME=COLUMN{near(name, COLUMNS)}")
    if not equals or not column:
      raise UserError(f"--columns: {word!r} is not {name}=COLUMN.")
    if name in found:
      raise UserError(f"--columns names {name} twice.")
    found[name] = column
  return found


def _budgets(text: str) -> list[float]:
  try:
    found = [float(word) for word in text.split(",")]
  except ValueError:
    found = [0.0]
  if not all(0 < value < 1e40 for value in found):
    raise argparse.ArgumentTypeError(f"{text!r} is no list of positive numbers")
  return found


def _resamples(text: str) -> int:
  if not text.isdecimal() or not 20 <= int(text) <= 100_000:
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 20 to 100,000")
  return int(text)


def _count(value: float) -> str:
  """Formats a count as people say it: 1.3B."""
  for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
    if value >= size:
      return f"{value / size:.3g}{unit}"
  return f"{value:.3g}"


if __name__ == "__main__":
  command.run(main)
