"""Scores a trained model on text: `python -m launch.evaluate --run_dir=runs/x`."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started by its path
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from base import commands, paths, small_files
from base.errors import UserError
from base.wording import plural
from experiment import trust
from launch import command, evaluate_harness, evaluation_files

if TYPE_CHECKING:
  from data.tokenizers import Tokenizer
  from evaluation.perplexity import Score
  from experiment.experiment import Dataset
  from experiment.run_directory import RunDirectory

DESCRIPTION = """\
Scores the model of a run on held-out text: bits per byte, and the loss at each position.

Needs only the run directory. The text is the run's, or that of a file of gin/data/; its rows may be
longer than in training. The tokenizer is always the run's.

A recall task, such as gin/data/phonebook.gin, is scored by its share of right answers instead."""


# Options without effect on a recall task.
_OF_TEXT = ("length", "batches", "by_position", "stream")


def parser() -> command.Parser:
  """Builds the argument parser of the command."""
  result = command.parser("evaluate", DESCRIPTION)
  result.add_argument("--run_dir", type=paths.argument, required=True, help="the folder of the run")
  result.add_argument(
    "--checkpoint", default="best", help="'best', 'latest' or a step (default: %(default)s)"
  )
  result.add_argument(
    "--data", help="a gin file that sets EVAL_DATA, such as gin/data/phonebook.gin"
  )
  result.add_argument("--length", type=int, help="tokens per row (default: the run's)")
  result.add_argument("--batch_size", type=int, help="rows per batch")
  result.add_argument("--batches", type=int, help="number of batches to read (default: all)")
  result.add_argument(
    "--by_position", action="store_true", help="also print and plot the loss by position"
  )
  result.add_argument(
    "--stream",
    action="store_true",
    help="score each document to its end, with a state that goes from row to row, and print the "
    "loss by position",
  )
  result.add_argument(
    "--contexts", help="recall tasks: context sizes to test, such as 256,512,1024"
  )
  result.add_argument(
    "--mesh",
    help="split the model over devices: a gin file such as mesh/zero3.gin, with macros such as "
    "--gin.MODEL_SHARDS=4 (default: one device)",
  )
  trust.add_arguments(result)
  evaluate_harness.add_arguments(result)
  return result


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status."""
  options = parser()
  args, bindings = command.parse(options, arguments)
  for name in ("length", "batch_size", "batches", "limit"):
    if getattr(args, name) is not None and getattr(args, name) < 1:
      options.error(f"--{name}={getattr(args, name)} must be at least 1")

  _check_together(options, args, bindings)
  try:
    contexts = [int(word) for word in (args.contexts or "").split(",") if word]
  except ValueError:
    options.error(f"--contexts={args.contexts} must be numbers, such as 256,512")

  from data import haystacks
  from data.document_streams import DocumentStreams
  from data.long_text import Suite
  from data.mixture import MixedRows
  from data.recall import RecallTask
  from data.row_halves import RowHalf
  from evaluation import held_out
  from evaluation.perplexity import Scorer
  from experiment import experiment as experiment_lib
  from experiment import run_config, step_memory
  from experiment import trained as trained_lib
  from experiment.run_directory import RunDirectory
  from inference import decode_sharding
  from launch import evaluate_long_text, evaluate_recall
  from training import carried_state
  from training.metrics import ProgressLine

  run = RunDirectory(args.run_dir)
  trained = trained_lib.load(
    run,
    args.checkpoint,
    mesh=args.mesh,
    files=[args.data] if args.mesh and args.data else (),
    arguments=bindings if args.mesh else (),
    trust=trust.Trust.of(args.trust),
  )
  where = decode_sharding.of(trained.sharding_plan, step_memory.of_device())
  if args.harness:
    return evaluate_harness.run(args, run, trained, where)
  experiment = trained.experiment
  if args.mesh and args.data:
    # A file of gin/data/ may set other sizes than the run's.
    experiment = experiment_lib.build(run_config.load(run, trust=trust.Trust.of(args.trust)))
  length = args.length or experiment.sequence_length
  data = _text(run, args, bindings, length, trained.tokenizer)
  task = getattr(data, "corpus", None)
  if isinstance(task, RecallTask):
    command.refuse(options, args, _OF_TEXT, f"on {task.name}, a recall task")
    task = haystacks.with_text_of(task, trained.experiment.eval_data)
    if isinstance(task, Suite):
      return evaluate_long_text.run(run, trained, task, contexts, args.batch_size, where)
    return evaluate_recall.run(run, trained, task, contexts, args.batch_size, where, arguments)
  if contexts:
    options.error(
      f"--contexts={args.contexts} is only for recall tasks, and "
      f"{getattr(data, 'what', 'this text')} is not one. Name one: --data=gin/data/phonebook.gin"
    )
  if args.stream:
    carried_state.check_model(trained.experiment.model, "Leave out --stream")
  with experiment_lib.naming_flags():
    rows = data.rows()
  batch_size = args.batch_size or max(
    1, experiment.batch_size * experiment.sequence_length // length
  )
  # A larger batch would be padding. Devices need the same number of rows.
  batch_size = min(batch_size, len(rows))
  batch_size = -(-batch_size // where.shards) * where.shards
  try:
    trained.sharding_plan.check_batch(batch_size, length)
  except ValueError as error:
    raise UserError(f"{error} Give another --length or --mesh.") from None
  scorer = Scorer(trained.experiment.model, trained.sharding_plan)
  streams = None
  if args.stream:
    if isinstance(rows, MixedRows):
      options.error(
        "--stream reads one text, and this is a mixture. Name one of its parts by --data"
      )
    if isinstance(rows, RowHalf):
      options.error(
        "--stream reads documents to their ends, and the run is scored on half of the rows. Add "
        "--gin.heldout/dataset.TextDataset.half=None for the whole text"
      )
    streams = DocumentStreams(rows, batch_size)
  progress = ProgressLine(
    len(streams) if streams else sum(held_out.batches_of(rows, batch_size, args.batches)),
    unit="batch",
  )

  def report(done: int, score: Score) -> None:
    if progress.is_due(done):
      progress.show(done, {"bits/byte": score.bits_per_byte})

  components: dict[str, Score] = {}
  if streams:
    score = scorer.stream(trained.params, streams, report)
  else:
    score, components = held_out.score(
      scorer, trained.params, rows, batch_size, most_batches=args.batches, report=report
    )
  result = {
    "run_dir": str(run.path),
    "step": trained.step,
    "data": _named(data, args.data or "the run's held-out data"),
    "length": length,
    "tokens": score.tokens,
    "bytes": score.bytes,
    "loss": score.loss,
    "bits_per_byte": score.bits_per_byte,
  }
  if args.stream:
    result["stream"] = True
  if args.batches is not None:
    result |= {"batches": args.batches, "batch_size": batch_size}
  if components:
    result["components"] = {
      name: {"loss": one.loss, "bits_per_byte": one.bits_per_byte, "tokens": one.tokens}
      for name, one in components.items()
    }
  _tell(result, score, run, args.by_position or args.stream)
  run_dir = f"--run_dir={paths.shown(run.path)}"
  command.tell_next(*commands.words("generate"), run_dir, *trust.words(args.trust))
  return 0


def _check_together(
  options: command.Parser, args: argparse.Namespace, bindings: Sequence[str]
) -> None:
  """Refuses options that have no effect with the others."""
  if args.harness is None:
    command.refuse(options, args, evaluate_harness.OPTIONS, "without --harness")
    if args.stream:
      command.refuse(options, args, ("batches",), "with --stream, which reads all documents")
    return
  command.refuse(
    options,
    args,
    ("data", "batches", "by_position", "stream", "contexts"),
    "with --harness",
  )
  if bindings and not args.mesh:
    options.error(
      f"{bindings[0]} has no effect with --harness, which uses the run's configuration. Overrides "
      "are for --mesh."
    )


def _text(
  run: RunDirectory,
  args: argparse.Namespace,
  bindings: list[str],
  length: int,
  tokenizer: Tokenizer,
) -> Dataset:
  """Opens the held-out text with the model's tokenizer, in rows of `length` tokens."""
  from config import source as gin_source
  from experiment import experiment as experiment_lib
  from experiment import run_config

  if args.data and not gin_source.read_file(args.data).statements:
    raise UserError(
      f"{args.data} sets nothing. Name a gin file that sets EVAL_DATA, such as "
      "gin/data/phonebook.gin."
    )
  files = [file for file in (args.mesh, args.data) if file]
  trusted = trust.Trust.of(args.trust)
  config = run_config.load(run, files, bindings, trust=trusted, makes_rows=True)
  experiment = experiment_lib.build(config)
  return experiment_lib.read_as(experiment.eval_data, sequence_length=length, vocabulary=tokenizer)


def _named(data: Dataset, otherwise: str) -> str:
  """Names a text, and which half of its rows is scored."""
  half = getattr(data, "half", None)
  return getattr(data, "what", otherwise) + (f", {half} half" if half else "")


def _tell(result: dict[str, Any], score: Score, run: RunDirectory, by_position: bool) -> None:
  """Prints the figures and stores them in the run directory."""
  streamed = result.get("stream", False)
  read = "documents to their ends, in " if streamed else ""
  print(f"step {result['step']} on {result['data']}, {read}rows of {result['length']} tokens")
  print(f"loss           {result['loss']:.4f} nats per token ({plural(result['tokens'], 'token')})")
  print(f"bits per byte  {result['bits_per_byte']:.4f} ({result['bytes']:,} bytes)")
  for name, one in result.get("components", {}).items():
    print(f"  {name}: loss {one['loss']:.4f}, bits per byte {one['bits_per_byte']:.4f}")
  buckets = score.by_position()
  result["by_position"] = [vars(bucket) for bucket in buckets]
  if by_position:
    print(f"\n{'positions':>15}  {'tokens':>10}  {'loss':>7}")
    for bucket in buckets:
      place = (
        f"{bucket.start}-{bucket.stop - 1}" if bucket.stop - bucket.start > 1 else bucket.start
      )
      print(f"{place:>15}  {bucket.tokens:>10,}  {bucket.loss:>7.4f}")
  name = re.sub(r"[^A-Za-z0-9_-]+", "_", f"{result['step']}-{result['data']}-{result['length']}")
  name += "-stream" if streamed else ""
  if "batches" in result:
    # A part of the text does not take the place of all, nor of another part.
    name += f"-batches_{result['batches']}x{result['batch_size']}"
  file = evaluation_files.keep(run, name, result)
  if by_position and file:
    _draw(buckets, file.with_suffix(".png"), f"{run.path.name}, {result['data']}")


def _draw(buckets: Sequence[Any], file: Path, title: str) -> None:
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.subplots()
  # From 1: a logarithmic axis cannot show position 0.
  middles = [((b.start + 1) * b.stop) ** 0.5 for b in buckets]
  axes.plot(middles, [b.loss for b in buckets], marker="o")
  axes.set(xscale="log", xlabel="position", ylabel="nats per token", title=title)
  axes.grid(alpha=0.3)
  picture = io.BytesIO()
  figure.savefig(picture, dpi=120)
  small_files.replace(file, picture.getvalue())


if __name__ == "__main__":
  command.run(main)
