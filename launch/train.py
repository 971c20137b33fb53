"""Trains a model: `python -m launch.train gin/runs/x.gin --run_dir=runs/x`."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

if not __package__:  # started by its path
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from base import commands, paths
from base.wording import plural
from experiment import trust
from launch import command, hosts

# Slow imports are made where they are used, so that --help and errors appear at once.
if TYPE_CHECKING:
  from config.config import Config
  from experiment.experiment import Experiment
  from experiment.run_directory import RunDirectory
  from parallel.sharding_plan import ShardingPlan
  from training.tracking import Tracking

DESCRIPTION = """\
Trains the model of a gin file, or continues the run in the run directory.

The run directory gets the configuration, metrics, checkpoints and a plot of the loss.

exit status:
  0    trained to the last step
  2    an error to fix, as the message says; starting again does not help. Also that of --dry_run
       where a step does not fit into memory
  75   stopped by SIGTERM or SIGUSR1, as before a preemption: saved; the same command continues
  130  stopped by Ctrl-C: the first saves after the current step, a second ends without saving
  else another failure, such as a lost host: the same command continues from the last checkpoint"""


def parser() -> command.Parser:
  """Builds the argument parser of the command."""
  result = command.parser("train", DESCRIPTION)
  result.add_argument(
    "config",
    nargs="*",
    help="gin files, such as gin/runs/griffin_quickstart.gin; later ones win. Default: the run's "
    "configuration. Files that are not a complete experiment, such as gin/precision/bfloat16.gin, "
    "change it.",
  )
  result.add_argument(
    "--run_dir", type=paths.argument, help="the folder of the run; created if missing"
  )
  result.add_argument(
    "--init_from",
    type=paths.argument,
    help="a run directory to take parameters and configuration from; gin files change the latter",
  )
  result.add_argument(
    "--resume",
    choices=("same", "force"),
    default="same",
    help="force: continue although the configuration differs from the run's (default: %(default)s)",
  )
  result.add_argument(
    "--describe", action="store_true", help="print parameters, FLOPs and bytes per token, and exit"
  )
  result.add_argument(
    "--describe_sharding",
    action="store_true",
    help="print the sharding of each parameter, and exit",
  )
  result.add_argument(
    "--print_config",
    action="store_true",
    help="print every value with the file and line that set it, and exit",
  )
  result.add_argument(
    "--dry_run",
    action="store_true",
    help="compile a step without allocating arrays, print the memory that it needs and whether it "
    "fits, and exit",
  )
  result.add_argument(
    "--profile",
    type=_steps,
    metavar="FIRST:LAST",
    help="trace these steps for XProf, such as 100:105, into the run directory; a running command "
    "traces its next steps on the signal SIGUSR2",
  )
  trust.add_arguments(result)
  hosts.add_arguments(result)
  return result


def _steps(text: str) -> range:
  """Type of --profile: the first and the last step, where 1 is the run's first."""
  first, colon, last = text.partition(":")
  if not (first.isdecimal() and last.isdecimal() and colon) or not 1 <= int(first) <= int(last):
    raise argparse.ArgumentTypeError(
      f"{text!r} must be the first and the last step, counted from 1, such as 100:105"
    )
  return range(int(first), int(last) + 1)


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status."""
  began = time.monotonic()
  _ignore_profile_signal()
  options = parser()
  args, bindings = command.parse(options, arguments)
  looks = args.describe or args.describe_sharding or args.print_config or args.dry_run
  if args.run_dir is None and not looks:
    options.error("--run_dir is needed, such as --run_dir=runs/first")
  if not args.config and args.run_dir is None:
    options.error("no experiment is given. Name a gin file, or a --run_dir that holds a run")

  if looks:
    command.refuse(options, args, ("resume", "profile"), "without training")
  if args.print_config:
    names = ("describe", "describe_sharding", "dry_run")
    command.refuse(options, args, names, "with --print_config")
  hosts.join(args)
  from experiment import experiment as experiment_lib
  from experiment import run_config
  from experiment.run_directory import RunDirectory

  run = RunDirectory(args.run_dir) if args.run_dir else None
  if run is not None:
    starts = args.config or args.init_from is not None
    if not starts and run.path.is_dir() and not run.config_file.exists():
      run.require_run()
    run.require_place()
  trusted = trust.Trust.of(args.trust)
  made_here = True
  if args.init_from is not None:
    bindings.append(f"--gin.experiment.experiment.Experiment.init_from={str(args.init_from)!r}")
    init = RunDirectory(args.init_from)
    if run is not None and run.path == init.path:
      options.error(
        f"--init_from and --run_dir are both {paths.shown(run.path)}: a run starts from another "
        "one. Without --init_from it continues"
      )
    config = run_config.load(
      init, args.config, bindings, trust=trusted, makes_rows=True, trains=True
    )
    made_here = run_config.is_own(init)
  elif run and (not args.config or (run.holds_run() and not run_config.is_whole(args.config))):
    config = run_config.load(
      run, args.config, bindings, trust=trusted, makes_rows=True, trains=True
    )
    made_here = run_config.is_own(run)
  else:
    config = experiment_lib.load(args.config, bindings)
  _warn(config)
  if args.print_config:
    print(config.text(), end="")
    return 0
  experiment = experiment_lib.build(config)
  if looks:
    return _look(experiment, args)
  run = cast("RunDirectory", run)  # Only the options that print and exit work without it.
  if args.profile and args.profile[-1] > experiment.options.steps:
    last = experiment.options.steps
    options.error(f"--profile: the run ends at step {last}; name steps up to {last}")
  from training.tracking import Tracking

  with Tracking() as tracking:
    return _train(
      experiment, config, run, args, trusted, made_here, list(arguments), began, tracking
    )


def _ignore_profile_signal() -> None:
  """Lets the signal for a profile do nothing outside the steps, where it would end the process."""
  number = getattr(signal, "SIGUSR2", None)  # none on Windows
  if number is not None and signal.getsignal(number) == signal.SIG_DFL:
    with contextlib.suppress(ValueError):  # only the main thread can handle signals
      signal.signal(number, signal.SIG_IGN)


def _warn(config: Config) -> None:
  if config.warnings:
    have = "binding has" if len(config.warnings) == 1 else "bindings have"
    print(f"warning: {len(config.warnings)} {have} no effect here:", file=sys.stderr)
    for warning in config.warnings:
      print(f"  {warning}", file=sys.stderr)


def _look(experiment: Experiment, args: argparse.Namespace) -> int:
  """Prints what was asked for; returns the exit status: 2 if a step does not fit into memory."""
  from experiment import describe

  asked = {
    describe.description: args.describe,
    describe.sharding: args.describe_sharding,
    describe.dry_run: args.dry_run,
  }
  found = [look(experiment) for look, wanted in asked.items() if wanted]
  print("\n\n".join(map(str, found)))
  return 0 if all(one.fits for one in found if isinstance(one, describe.DryRun)) else 2


def _train(
  experiment: Experiment,
  config: Config,
  run: RunDirectory,
  args: argparse.Namespace,
  trusted: trust.Trust,
  made_here: bool,
  arguments: list[str],
  began: float,
  tracking: Tracking,
) -> int:
  """Trains, and prints how it ended."""
  from experiment import mesh_advice, running
  from parallel import processes
  from planning.hardware import catalogue

  def first_step_done() -> None:
    if processes.is_first():
      print(f"first step done {time.monotonic() - began:.1f} s after launch", file=sys.stderr)

  sharding_plan = mesh_advice.sharding_plan(experiment)
  device = sharding_plan.mesh.devices.flat[0]
  chip = catalogue.chip_of(device.device_kind)
  summary = running.train(
    experiment,
    config,
    run,
    sharding_plan,
    asked_by=shlex.join([*commands.words("train"), *arguments]),
    resume=args.resume,
    trust=trusted,
    made_here=made_here,
    introduce=lambda rows: _introduce(experiment, run, sharding_plan, rows, chip is not None),
    after_first_step=first_step_done,
    peak_flops=chip and chip.flops,
    tracking=tracking,
    profile=args.profile,
  )
  if summary.interrupted and summary.step < experiment.options.steps:
    if processes.is_first():
      print(_how_it_stopped(summary))
    return command.status_of_stop(summary.interrupted)
  if summary.start_step == summary.step:
    if processes.is_first():
      _tell_finished(summary, run, args.trust)
    return 0
  several = processes.count() > 1
  if several and processes.is_first():
    # Before the samples, which another host may end.
    _tell_end(summary, run, experiment, args.trust)
  texts = []
  try:
    # A signal during the last step came too late to stop the run, but asks not to go on.
    if not summary.interrupted:
      texts = _samples(experiment, summary.state.params, sharding_plan, run)
  except Exception as error:  # Any failure: the run is finished and saved, and must end as such.
    reason = f"no samples: {_in_one_line(error)}"
    print(f"warning: {reason}", file=sys.stderr)
    if several:
      # The others wait for this process in the middle of decoding.
      command.end_with_others(reason, 0)
  if processes.is_first():
    if texts:
      _tell_samples(experiment.samples, texts)
      tracking.samples(summary.step, dict(zip(experiment.samples, texts, strict=True)))
    if not several:
      _tell_end(summary, run, experiment, args.trust)
  return 0


def _how_it_stopped(summary: Any) -> str:
  if summary.saved_step == summary.step:
    return f"stopped at step {summary.step} and saved; the same command continues from there"
  return (
    f"stopped at step {summary.step}, not saved because its values are not finite; the same "
    f"command continues from step {summary.saved_step or 0}"
  )


def _introduce(
  experiment: Experiment, run: RunDirectory, sharding_plan: ShardingPlan, rows: int, has_mfu: bool
) -> None:
  import jax

  from models.accounting import list_parameters
  from training.checkpoint import available_steps

  devices = (
    "" if sharding_plan.mesh.size == 1 else f"{plural(sharding_plan.mesh.size, 'device')} of "
  )
  parameters = list_parameters(experiment.model)
  count = sum(parameter.count for parameter in parameters)
  trained = sum(p.count for p in parameters if experiment.model.trains(p.path))
  of_which = "" if trained == count else f" ({trained / 1e6:.3g} M trained)"
  tokens = experiment.batch_size * experiment.sequence_length
  weights = ""
  if experiment.init_from is not None and not available_steps(run.path):
    weights = f" from {paths.shown(paths.of(experiment.init_from))}"
  steps = plural(experiment.options.steps, "step")
  print(
    f"{run}: {count / 1e6:.2f} M parameters{weights}{of_which}, {steps} of "
    f"{plural(tokens, 'token')}, {plural(rows, 'row')} of {experiment.sequence_length}, on "
    f"{devices}{jax.default_backend()}",
    file=sys.stderr,
  )
  if experiment.chosen_size is not None:
    print(experiment.chosen_size, file=sys.stderr)
  if not has_mfu:
    kind = sharding_plan.mesh.devices.flat[0].device_kind
    print(f"metrics have no MFU: the peak FLOP/s of {kind} is not known", file=sys.stderr)


def _samples(
  experiment: Experiment, params: Any, sharding_plan: ShardingPlan, run: RunDirectory
) -> list[str]:
  """Continues the experiment's prompts; reads the train state's parameters without a copy."""
  from experiment import end_tokens
  from inference.decode_sharding import OneDevice, OverMesh
  from inference.sampling import Sampler
  from inference.text_generator import TextGenerator

  if not experiment.samples:
    return []
  generator = TextGenerator(
    experiment.model,
    params,
    experiment.tokenizer,
    Sampler(temperature=0.8, top_p=0.95),
    OneDevice(lean=True) if sharding_plan.mesh.size == 1 else OverMesh(sharding_plan, lean=True),
    stop_ids=end_tokens.stop_ids(run.path, experiment),
  )
  return generator.texts(experiment.samples, max_tokens=200, seed=experiment.seed)


def _in_one_line(error: Exception) -> str:
  text = " ".join(f"{type(error).__name__}: {error}".split())
  return text if len(text) <= 400 else f"{text[:400]}..."


def _tell_samples(prompts: Sequence[str], texts: Sequence[str]) -> None:
  for prompt, text in zip(prompts, texts, strict=True):
    print(f"--- sample (temperature 0.8, top-p 0.95), prompt {prompt!r}")
    print(prompt + text)
  print("---")


def _tell_finished(summary: Any, run: RunDirectory, trusted: Sequence[str]) -> None:
  """Prints the end of a run that was finished before this command began."""
  _tell_heldout(summary)
  print(f"{run} is finished: {plural(summary.step, 'step')} done")
  longer = f"--gin.STEPS={2 * summary.step}"
  words = [*commands.words("train"), f"--run_dir={run}", "--resume=force", longer]
  command.tell_next(*words, *trust.words(trusted))


def _tell_end(
  summary: Any, run: RunDirectory, experiment: Experiment, trusted: Sequence[str]
) -> None:
  from training.loop import LOSS_PICTURE

  _tell_heldout(summary)
  if not math.isnan(summary.tokens_per_second):  # one step alone compiles, and tells no rate
    print(f"{summary.tokens_per_second:,.0f} tokens/s")
  print(f"configuration, metrics, checkpoints and {LOSS_PICTURE} are in {run}")
  if experiment.samples:
    prompts = [f"--prompt={sample}" for sample in experiment.samples[:1] if sample]
    words = [*commands.words("generate"), f"--run_dir={run}", *prompts]
  else:
    words = [*commands.words("evaluate"), f"--run_dir={run}"]
  command.tell_next(*words, *trust.words(trusted))


def _tell_heldout(summary: Any) -> None:
  for name, value in summary.heldout.items():
    print(f"{name.replace('_', ' ').replace('heldout', 'held-out')}: {value:.4f}")


if __name__ == "__main__":
  command.run(main)
