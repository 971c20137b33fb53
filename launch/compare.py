"""Compares models: `python -m launch.compare gin/compare/quick.gin --output=comparisons/quick`."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if not __package__:  # started by its path
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from base import buckets, commands, paths
from base.errors import UserError
from base.wording import plural
from experiment import directory_owner, trust
from launch import chip_hours, command, hosts, planned_hardware

if TYPE_CHECKING:
  from comparison.comparison import Comparison
  from comparison.page.figure import Figure
  from comparison.page.report import Report
  from config.config import Config

DESCRIPTION = """\
Trains and measures the models of a gin file, and shows on one page which is better, and where.
Run directories in its place, as in `launch.compare runs/a runs/b`, are compared as they are.

The output folder gets report/index.html, report/data.json, the training runs and all results. The
same command continues an interrupted comparison, and repeats only measurements that changed."""


def parser() -> command.Parser:
  """Builds the argument parser of the command."""
  result = command.parser("compare", DESCRIPTION)
  result.add_argument(
    "config",
    nargs="*",
    help="a gin file, such as gin/compare/quick.gin (default: that of --output); or directories of "
    "finished runs, the baseline first, and with them gin files of another text to score them on",
  )
  result.add_argument(
    "--output",
    type=paths.argument,
    help="the folder of the comparison; created if missing (default, for runs: a folder of "
    "comparisons named after them)",
  )
  result.add_argument(
    "--only", help="comma-separated parts to measure, such as decode_speed,scaling"
  )
  result.add_argument(
    "--resume",
    choices=("same", "force"),
    default="same",
    help="force: continue although the configuration differs from the output's "
    "(default: %(default)s)",
  )
  result.add_argument(
    "--describe", action="store_true", help="print models, runs and parts, and stop"
  )
  result.add_argument(
    "--hardware",
    help="with --describe: also plan the chip hours of all trainings on hardware that need not be "
    f"attached: {planned_hardware.HELP}",
  )
  result.add_argument(
    "--export",
    type=paths.local_argument,
    metavar="FOLDER",
    help="measure nothing: write each figure on the page as PNG, PDF, CSV and LaTeX",
  )
  trust.add_arguments(result)
  hosts.add_arguments(result)
  return result


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status."""
  options = parser()
  args, bindings = command.parse(options, arguments)
  runs = _runs(options, args.config)
  if args.output is None and not args.describe and not runs:
    if args.config:
      _require_comparison(args.config[0])
    options.error("--output is needed, such as --output=comparisons/quick")
  if not args.config and args.output is None:
    options.error("no comparison is given. Name a gin file, or an --output that holds a comparison")

  if args.describe:
    command.refuse(options, args, ("only", "resume", "export"), "with --describe")
  else:
    command.refuse(options, args, ("hardware",), "without --describe")
  hardware = planned_hardware.choose(args.hardware) if args.hardware else None
  if args.export:
    if args.config or bindings:
      options.error("--export takes the page of --output as it is: leave gin files and values out")
    command.refuse(options, args, ("only", "resume"), "with --export")
    return _export(args)
  hosts.join(args)
  from comparison import comparison as comparison_lib
  from comparison import of_runs
  from experiment import file_kinds, trust_check
  from experiment.run_directory import RunDirectory

  if runs and args.output is None:
    args.output = paths.absolute(of_runs.default_output(runs))
  directory = RunDirectory(args.output) if args.output else None
  trusted = trust.Trust.of(args.trust)
  kept = text = None
  if directory is not None and not args.config:
    if not directory.holds_run():
      raise UserError(
        f"{args.output} holds no comparison: it has no config.gin. To start one, name a gin file "
        "too, such as gin/compare/quick.gin."
      )
    # Read once, so that the text that is checked is the text that is loaded.
    kept = directory.config_text()
    trust_check.check(directory.config_file, trusted, text=kept, makes_rows=True, comparison=True)
    directory.require_made_from(file_kinds.COMPARISON, kept)
  if runs:
    files = [file for file in args.config if file.endswith(".gin")]
    macros, bindings = of_runs.split_bindings(files, bindings)
    text = of_runs.gin_text(runs, [*files, *macros], trusted)
    source = of_runs.source_name(runs)
  else:
    text, source = kept, args.config[0] if args.config else cast(Any, directory).config_file
  config = comparison_lib.load(source, bindings, text=text)
  comparison = config.build()
  if runs:
    of_runs.require_models(comparison, trusted)
  for run in comparison.run_directories():
    text = run.config_text(run.judge())
    trust_check.check(run.config_file, trusted, text=text, makes_rows=True)
  only = _chosen(args.only, comparison)
  if args.describe:
    print(_description(comparison))
    if hardware:
      print("\n" + chip_hours.table(comparison, hardware))
    return 0
  output, directory = cast(Path, args.output), cast(RunDirectory, directory)  # --output is given
  asked_by = shlex.join([*commands.words("compare"), *arguments])
  # Raises errors before the output is claimed.
  made_here = kept is None or trust_check.is_recorded(directory.config_file, kept)
  comparing = _Comparing(comparison, config, output, asked_by, trusted, made_here)
  directory.require_outside_of_runs("--output")
  directory.require_no_foreign_files("--output", ("runs", "cells", "report"))
  with directory_owner.owned_by_job(output) as require_mine:
    _open(directory, config, args.resume, asked_by, trusted, made_here)
    return comparing.run(only, require_mine)


def _require_comparison(file: str) -> None:
  """Raises ConfigError if a gin file describes no comparison: then --output is not what lacks."""
  from config import source
  from experiment import file_kinds

  file_kinds.require(source.read_file(file), file_kinds.COMPARISON, file)


def _runs(options: command.Parser, given: Sequence[str]) -> list[Path]:
  """Returns the run directories among the arguments; none if they are one gin file."""
  if len(given) < 2 and not any(map(os.path.isdir, given)):
    return []
  runs = [Path(os.path.abspath(word)) for word in given if not word.endswith(".gin")]
  for word in given:
    if not word or "\0" in word:
      options.error(f"{word!r} is not a path")
    if buckets.is_address(word):
      options.error(f"{word} is in a bucket: copy the run directory to this machine first")
  if not runs:
    options.error(f"one comparison at a time: {given[0]} or {given[1]}")
  return runs


def _export(args: Any) -> int:
  """Writes the figures of a page as files."""
  from comparison.page import export, report
  from experiment.run_directory import RunDirectory

  RunDirectory(args.export).require_outside_of_runs("--export", continues=False)
  file = args.output / "report" / report.DATA_FILE
  try:
    models, figures = report.read(file)
  except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
    raise UserError(
      f"{paths.shown(file)} cannot be read, or is no page's. Name the --output of a comparison."
    ) from None
  if not figures:
    raise UserError(f"{paths.shown(file)} has no figures yet. The same comparison continues.")
  files = export.write(figures, models, args.export)
  print(
    f"{plural(len(figures), 'figure')}, {plural(len(files), 'file')} in {paths.shown(args.export)}"
  )
  return 0


def _chosen(only: str | None, comparison: Comparison) -> tuple[str, ...]:
  """Returns the parts that `--only` names, in the comparison's order.

  Raises:
    UserError: a part is unknown.
  """
  from base.wording import near
  from comparison.comparison import TUNING, OnTrainedModels

  if only is None:
    return tuple(comparison.all_parts)
  names = [name.strip() for name in only.split(",") if name.strip()]
  for name in names:
    if name not in comparison.all_parts:
      raise UserError(f"unknown part: {name!r}{near(name, comparison.all_parts)}")
  if not names:
    raise UserError(f"--only names no part. Choose from {', '.join(comparison.all_parts)}.")
  if any(isinstance(comparison.all_parts[name], OnTrainedModels) for name in names):
    names.append(TUNING)  # Which their trainings need.
  return tuple(name for name in comparison.all_parts if name in names)


def _open(
  directory: Any,
  config: Config,
  resume: str,
  asked_by: str,
  trusted: trust.Trust,
  made_here: bool,
) -> None:
  """Claims the output for this configuration.

  Raises:
    UserError: the output holds another configuration.
  """
  from experiment import file_kinds
  from parallel import processes

  if directory.holds_run():
    directory.require_made_from(file_kinds.COMPARISON)
  different = directory.differences(config, trusted) if directory.holds_run() else []
  if different and resume != "force":
    lines = "\n".join(map(str, different))
    raise UserError(
      f"{directory} contains a comparison with another configuration:\n{lines}\n"
      "Give --resume=force to continue with the new values (unaffected results are kept), or "
      "another --output."
    )
  processes.wait_for_all("compared with the output")
  if processes.is_first() and (different or not directory.holds_run()):
    directory.write_config(config, asked_by, made_here=made_here)


def _description(comparison: Comparison) -> str:
  """Describes models, sizes and parts from shapes alone."""
  import tempfile

  from comparison import loaded_runs, prepared_parts
  from comparison.measurement import RunSpec
  from comparison.page import report
  from comparison.progress import ComparisonProgress
  from comparison.runs import TrainedRuns
  from experiment.describe import table

  with tempfile.TemporaryDirectory() as nowhere:
    runs = TrainedRuns(comparison, Path(nowhere), ComparisonProgress(), "")
    rows = [("size", "model", "parameters", "tokens", "FLOPs of a training")]
    for size in comparison.sizes:
      for model in comparison.models:
        cost = runs.cost(RunSpec(model=model, size=size, seed=comparison.seeds[0]))
        rows.append((size, model, f"{cost.parameters:,}", f"{cost.tokens:,}", f"{cost.flops:.3g}"))
    works = prepared_parts.prepare(comparison, runs, None, lambda *_: None)
    parts = [("part", "results"), *((work.name, str(len(work.costs))) for work in works)]
    left_out = [f"{work.name}: {work.left_out}" for work in works if work.left_out]
  # The recall comparison trains none of the sizes: its parts train on their tasks.
  if not any(group == "training" for work in works for group, _ in work.costs.values()):
    rows = [row[:3] for row in rows]
  seeds = report.seeds_text(comparison.seeds, loaded_runs.seeds_apart(comparison))
  tables = [table(rows, right=(2, 3, 4)), f"seeds {seeds}", table(parts, right=(1,))]
  return "\n\n".join([*tables, *left_out])


class _Comparing:
  """Runs a comparison."""

  def __init__(
    self,
    comparison: Comparison,
    config: Config,
    output: Path,
    asked_by: str,
    trusted: trust.Trust,
    made_here: bool,
  ):
    from comparison import prepared_parts
    from comparison.progress import ComparisonProgress
    from comparison.runs import TrainedRuns

    self._comparison, self._config = comparison, config
    self._output, self._asked_by = output, asked_by
    self._progress = ComparisonProgress()
    runs = TrainedRuns(
      comparison, output / "runs", self._progress, asked_by, trusted, made_here, _peak_flops
    )
    self._works = prepared_parts.prepare(
      comparison, runs, output / "cells", self._progress.on_result
    )

  def run(self, only: Sequence[str], before_writing: Callable[[], None]) -> int:
    """Measures the parts of `only`, and writes a page of all measured parts."""
    from comparison import machine
    from comparison.page import report as report_lib
    from comparison.runs import Stopped
    from parallel import processes

    for work in self._works:
      if work.name in only:
        self._progress.plan(work.planned())
        if processes.is_first() and (change := work.measured.changed(work.costs)):
          self._progress.say(f"{work.name} is measured again: {machine.change(*change)}")
    # Stored results of other parts are shown too.
    found = {work.name: figures for work in self._works if (figures := work.kept()) is not None}
    for work in self._works:
      if work.name in only and work.name not in found:
        try:
          found[work.name] = work.figures(_checked(work.measured.cached, before_writing))
        except Stopped as stopped:
          print(f"stopped in {work.name} ({stopped}); the same command continues", file=sys.stderr)
          return command.status_of_stop(stopped.by)
        except KeyboardInterrupt as stopped:
          reason = f"interrupted in {work.name}; the same command continues"
          raise KeyboardInterrupt(reason) from stopped
        before_writing()
        self._write(found)
    report, page = self._write(found)
    if processes.is_first():
      print(f"{report_lib.summary(report)}\n\n{paths.shown(page)}")
      if not buckets.in_bucket(page):
        command.tell_next("python", "-m", "http.server", f"--directory={paths.shown(page.parent)}")
    return 0

  def _write(self, found: Mapping[str, tuple[Figure, ...]]) -> tuple[Report, Path]:
    """Writes the page of the figures so far."""
    from parallel import processes

    report, folder = self._report(found), self._output / "report"
    return report, report.write(folder) if processes.is_first() else folder

  def _report(self, found: Mapping[str, tuple[Figure, ...]]) -> Report:
    from comparison import loaded_runs, machine
    from comparison.page.report import Report, Section
    from comparison.page.trade_offs import trade_offs

    sections = [
      Section(name=work.name, figures=found.get(work.name, ()), left_out=work.left_out)
      for work in self._works
    ]
    figures = [figure for section in sections for figure in section.figures]
    if traded := trade_offs(figures, tuple(self._comparison.models)):
      sections.append(Section(name="trade_offs", figures=traded))
    return Report(
      title=self._comparison.title,
      sections=tuple(sections),
      models=tuple(self._comparison.models),
      seeds=tuple(self._comparison.seeds),
      hardware=machine.hardware(),
      versions=machine.versions(),
      config=self._config.text(),
      command=self._asked_by,
      made=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
      seeds_of=loaded_runs.seeds_apart(self._comparison),
      notes=loaded_runs.notes(self._comparison),
    )


def _peak_flops(device_kind: str) -> float | None:
  """Returns a device's bfloat16 FLOP/s by JAX's name of it; None if that is unknown."""
  from planning.hardware import catalogue

  chip = catalogue.chip_of(device_kind)
  return None if chip is None else chip.flops


def _checked(cached: Any, before_writing: Callable[[], None]) -> Any:
  """Wraps `cached`: calls `before_writing` before a result is stored."""

  def checked(key: str, measure: Callable[[], Any]) -> Any:
    def measured() -> Any:
      value = measure()
      before_writing()
      return value

    return cached(key, measured)

  return checked


if __name__ == "__main__":
  command.run(main)
