"""RecurrentGemma in and out: `python -m launch.convert SOURCE TARGET`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from base import paths
from experiment import trust
from launch import command

DESCRIPTION = """\
Makes a run directory of RecurrentGemma's published weights, or Hugging Face files of a run
directory.

SOURCE says which: a folder with config.json and safetensors (Hugging Face) or an Orbax checkpoint
(DeepMind's Flax code) becomes a run directory, a run directory becomes Hugging Face files. TARGET
appears whole or not at all. --gin. bindings change the configuration of a new run directory."""


def parser() -> command.Parser:
  """The command's arguments."""
  result = command.parser("convert", DESCRIPTION)
  result.add_argument("source", type=paths.argument, help="the folder to read")
  result.add_argument("target", type=paths.argument, help="the folder to make")
  result.add_argument(
    "--vocabulary",
    help="the SentencePiece model of imported weights, or 'bytes'; by default SOURCE's "
    "tokenizer.model",
  )
  result.add_argument(
    "--checkpoint",
    default="best",
    help="of a run: 'best', 'latest' or a step (default: %(default)s)",
  )
  result.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="type of exported tensors; by default the run's",
  )
  result.add_argument(
    "--shard_gb",
    type=float,
    default=5.0,
    help="largest exported file, in 1e9 bytes (default: %(default)s)",
  )
  result.add_argument(
    "--merge",
    action="store_true",
    help="make a run directory of a run with adapters, in which they are part of the weights",
  )
  trust.add_arguments(result)
  return result


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status."""
  options = parser()
  args, bindings = command.parse(options, arguments)
  if not 0 < args.shard_gb < 1e9:
    options.error(f"--shard_gb={args.shard_gb} must be above 0 and below 1e9")

  from conversion import conversion

  words = shlex.join(["python", "-m", "launch.convert", *arguments])
  trusted = trust.Trust.of(args.trust)
  kind = conversion.kind_of(args.source)
  note = ""
  _check_together(options, args, bindings, kind == conversion.RUN)
  if kind == conversion.RUN and args.merge:
    conversion.merge(args.source, args.target, args.checkpoint, words, trusted)
  elif kind == conversion.RUN:
    max_bytes = int(args.shard_gb * 1e9)
    note = conversion.export(
      args.source, args.target, args.checkpoint, args.dtype, max_bytes, trusted
    )
  else:
    conversion.import_weights(kind, args.source, args.target, args.vocabulary, bindings, words)
  print(f"{paths.shown(args.target)} is ready")
  if note:
    print(note)
  target = paths.shown(args.target)
  if kind == conversion.RUN and not args.merge:
    print(f"next: transformers.AutoModelForCausalLM.from_pretrained({target!r})", file=sys.stderr)
  else:
    command.tell_next("python", "-m", "launch.generate", f"--run_dir={target}")
  return 0


def _check_together(
  options: command.Parser, args: argparse.Namespace, bindings: Sequence[str], of_run: bool
) -> None:
  """Refuses options that do nothing for what is converted."""
  source = paths.shown(args.source)
  if not of_run:
    names = ("checkpoint", "dtype", "shard_gb", "merge")
    command.refuse(options, args, names, f"on {source}, which is no run directory")
    return
  command.refuse(options, args, ("vocabulary",), f"on {source}, a run directory with its own")
  if args.merge:
    command.refuse(
      options, args, ("dtype", "shard_gb"), "with --merge, which makes a run directory"
    )
  if bindings:
    what = (
      "a run directory that keeps its configuration" if args.merge else "files that have no gin"
    )
    options.error(f"{bindings[0]} has no effect: {source} becomes {what}")


if __name__ == "__main__":
  command.run(main)
