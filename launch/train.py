"""Trains a model: `python -m launch.train gin/runs/x.gin --run_dir=runs/x`."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import command, hosts

# What takes seconds to import is imported where it is used: --help and mistakes answer at once.
if TYPE_CHECKING:
  from launch.config import Config
  from launch.experiment import Experiment
  from launch.run_directory import Difference, RunDirectory
  from parallel.layout import Layout

DESCRIPTION = """\
Trains a model as a gin file says, or goes on training what the run directory holds.

The run directory gets the configuration, the metrics, checkpoints and a picture of the loss."""


def parser() -> argparse.ArgumentParser:
  """The command's arguments."""
  result = command.parser("train", DESCRIPTION)
  result.add_argument(
    "config",
    nargs="*",
    help="gin files, such as gin/runs/griffin_quickstart.gin; a later one wins; by default that of the run",
  )
  result.add_argument("--run_dir", type=Path, help="the folder of the run; made if missing")
  result.add_argument(
    "--init_from",
    type=Path,
    help="a run directory: start from its parameters and its configuration, which the gin files change",
  )
  result.add_argument(
    "--resume",
    choices=("same", "force"),
    default="same",
    help="force: go on with a configuration that is not the run's (%(default)s)",
  )
  result.add_argument(
    "--describe", action="store_true", help="print parameters, FLOPs and bytes per token, and stop"
  )
  result.add_argument(
    "--describe_sharding", action="store_true", help="print where each parameter lies, and stop"
  )
  result.add_argument(
    "--print_config",
    action="store_true",
    help="print every value with the file and line it came from, and stop",
  )
  result.add_argument(
    "--dry_run",
    action="store_true",
    help="compile a step from shapes alone, print the memory it would take, and stop",
  )
  hosts.add_arguments(result)
  return result


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status."""
  began = time.monotonic()
  options = parser()
  args, bindings = command.parse(options, arguments)
  looks = args.describe or args.describe_sharding or args.print_config or args.dry_run
  if args.run_dir is None and not looks:
    options.error("--run_dir is needed, such as --run_dir=runs/first")
  if not args.config and args.run_dir is None:
    options.error("a gin file is needed, or a --run_dir that holds a run")

  hosts.join(args)
  from launch import experiment as experiment_lib
  from launch.run_directory import RunDirectory

  run = RunDirectory(args.run_dir) if args.run_dir else None
  files = list(args.config)
  if args.init_from is not None:
    RunDirectory(args.init_from).require_run()
    files.insert(0, RunDirectory(args.init_from).config_file)
    bindings.append(f"--gin.launch.experiment.Experiment.init_from={str(args.init_from)!r}")
  elif not files:
    run.require_run()
  config = experiment_lib.load(files or run.config_file, bindings)
  _warn(config)
  if args.print_config:
    print(config.text(), end="")
    return 0
  experiment = experiment_lib.build(config)
  if looks:
    _look(experiment, args)
    return 0
  return _train(experiment, config, run, args.resume, list(arguments), began)


def _warn(config: Config) -> None:
  if config.warnings:
    print(f"warning: {len(config.warnings)} bindings have no effect here:", file=sys.stderr)
    for warning in config.warnings:
      print(f"  {warning}", file=sys.stderr)


def _look(experiment: Experiment, args: argparse.Namespace) -> None:
  from launch import describe

  asked = {
    describe.description: args.describe,
    describe.sharding: args.describe_sharding,
    describe.dry_run: args.dry_run,
  }
  print("\n\n".join(str(look(experiment)) for look, wanted in asked.items() if wanted))


def _train(
  experiment: Experiment,
  config: Config,
  run: RunDirectory,
  resume: str,
  arguments: list[str],
  began: float,
) -> int:
  """Trains, and tells how it ended."""
  import jax

  from data import loader
  from evaluation.perplexity import Scorer
  from parallel import processes
  from training import checkpoint, loop

  _require_agreement(config)
  if checkpoint.is_parameters_alone(run.path):
    raise command.UserError(
      f"{run.path} holds imported weights, and no run to go on with. "
      f"Train in another directory: --init_from={run.path} --run_dir=..."
    )
  experiment.check_vocabulary()
  layout = experiment.layout()
  if layout is None and processes.count() > 1:
    raise command.UserError(
      f"{processes.count()} processes need a mesh to share: include a file of gin/mesh/ but single.gin."
    )
  different = run.differences(config) if run.holds_run() else []
  if resume != "force":
    _require_same(different, run)
  # Made now if missing: before anything is written into the run directory.
  train_rows, eval_rows = experiment.rows()
  data = {"training rows": train_rows.fingerprint, "held-out rows": eval_rows.fingerprint}
  if run.holds_run() and resume != "force":
    _require_same(run.data_differences(data), run)
  processes.wait_for_all("compared with the run")
  if processes.is_first():
    if different or not run.holds_run():
      run.write_config(config, shlex.join(["python", "-m", "launch.train", *arguments]))
    run.write_data(data, experiment.vocabulary)

  scorer = Scorer(experiment.model, experiment.vocabulary.byte_lengths(), layout)

  def evaluate(params: Any) -> dict[str, float]:
    batches = loader.batches(eval_rows, experiment.batch_size, shuffle=False, repeat=False)
    count = min(experiment.eval_batches or len(batches), len(batches))
    score = scorer(params, (next(batches) for _ in range(count)))
    batches.close()
    return {"heldout_loss": score.loss, "heldout_bits_per_byte": score.bits_per_byte}

  def first_step_done() -> None:
    if processes.is_first():
      print(f"first step done {time.monotonic() - began:.1f} s after launch", file=sys.stderr)

  first, end = 0, experiment.batch_size
  if layout is not None:
    first, end = layout.rows_here(experiment.batch_size, experiment.sequence_length)
  batches = loader.batches(
    train_rows,
    experiment.batch_size,
    seed=experiment.seed,
    shard_index=first // (end - first),
    shard_count=experiment.batch_size // (end - first),
  )
  devices = "" if layout is None else f"{layout.mesh.size} devices of "
  if processes.is_first():
    _introduce(experiment, run, len(train_rows), devices + jax.default_backend())
  try:
    summary = loop.train(
      model=experiment.model,
      optimizer=experiment.optimizer.transformation(),
      learning_rate=experiment.optimizer.learning_rate,
      batches=batches,
      batch_size=experiment.batch_size,
      options=experiment.options,
      run_dir=run.path,
      seed=experiment.seed,
      bytes_per_token=train_rows.bytes_per_token,
      evaluate=evaluate,
      start=_start(experiment),
      identity={"config": config.text(), "data": data},
      layout=layout,
      after_first_step=first_step_done,
    )
  except jax.errors.JaxRuntimeError:
    hosts.wait_for_name_of_dead()
    raise
  finally:
    batches.close()
  if summary.interrupted:
    if processes.is_first():
      print(f"stopped at step {summary.step} and saved; the same command goes on from there")
    return 0
  texts = _samples(experiment, summary.state.params, layout)
  if processes.is_first():
    _tell_samples(experiment.samples, texts)
    _tell_end(summary, run)
  return 0


def _start(experiment: Experiment) -> Callable[[Any], Any] | None:
  """Reads the parameters that a new run starts from; None if they are drawn."""
  if experiment.init_from is None:
    return None
  from launch import trained

  return lambda abstract: trained.start(experiment, abstract)


def _require_agreement(config: Config) -> None:
  """Ends every process if one was started with another configuration."""
  from parallel import processes

  try:
    processes.require_same(config.text(), "the configuration")
  except ValueError as error:
    raise command.UserError(str(error)) from None


def _require_same(different: list[Difference], run: RunDirectory) -> None:
  if different:
    lines = "\n".join(map(str, different))
    raise command.UserError(
      f"{run.path} holds a run that differs from this one:\n{lines}\n"
      "Give --resume=force to go on with the new values, or another --run_dir."
    )


def _introduce(experiment: Experiment, run: RunDirectory, rows: int, backend: str) -> None:
  from models.accounting import list_parameters

  parameters = list_parameters(experiment.model)
  count = sum(parameter.count for parameter in parameters)
  trained = sum(p.count for p in parameters if experiment.model.trains(p.path))
  of_which = "" if trained == count else f" ({trained / 1e6:.3g} M trained)"
  tokens = experiment.batch_size * experiment.sequence_length
  print(
    f"{run.path}: {count / 1e6:.2f} M parameters{of_which}, {experiment.options.steps} steps of {tokens:,} "
    f"tokens, {rows:,} rows of {experiment.sequence_length}, on {backend}",
    file=sys.stderr,
  )


def _samples(experiment: Experiment, params: Any, layout: Layout | None) -> list[str]:
  from inference.sampling import Sampler
  from launch.generation import TextGenerator
  from parallel.rows import OneDevice, OverMesh

  generator = TextGenerator(
    experiment.model,
    params,
    experiment.vocabulary,
    Sampler(temperature=0.8, top_p=0.95),
    OneDevice() if layout is None else OverMesh(layout),
  )
  if not experiment.samples:
    return []
  return generator.texts(experiment.samples, max_tokens=200, seed=experiment.seed)


def _tell_samples(prompts: Sequence[str], texts: Sequence[str]) -> None:
  for prompt, text in zip(prompts, texts, strict=True):
    print(f"--- sample (temperature 0.8, top-p 0.95), prompt {prompt!r}")
    print(prompt + text)
  print("---")


def _tell_end(summary: Any, run: RunDirectory) -> None:
  from training.loop import LOSS_PICTURE

  for name, value in summary.heldout.items():
    print(f"{name.replace('_', ' ').replace('heldout', 'held-out')}: {value:.4f}")
  if summary.step > summary.start_step:
    print(f"{summary.tokens_per_second:,.0f} tokens/s")
  print(f"configuration, metrics, checkpoints and {LOSS_PICTURE} are in {run.path}")


if __name__ == "__main__":
  command.run(main)
