"""RecurrentGemma in and out: `python -m launch.convert SOURCE TARGET`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from launch import command, paths, trust

DESCRIPTION = """\
Makes a run directory of RecurrentGemma's published weights, or Hugging Face files of a run directory.

SOURCE says which: a folder with config.json and safetensors (Hugging Face) or an Orbax checkpoint
(DeepMind's Flax code) becomes a run directory, a run directory becomes Hugging Face files. TARGET appears
whole or not at all. --gin. bindings change the configuration of a new run directory."""


def parser() -> argparse.ArgumentParser:
  """The command's arguments."""
  result = command.parser("convert", DESCRIPTION)
  result.add_argument("source", type=paths.argument, help="the folder to read")
  result.add_argument("target", type=paths.argument, help="the folder to make")
  result.add_argument(
    "--vocabulary",
    help="the SentencePiece model of imported weights, or 'bytes'; by default SOURCE's tokenizer.model",
  )
  result.add_argument(
    "--checkpoint", default="best", help="of a run: 'best', 'latest' or a step (%(default)s)"
  )
  result.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="type of exported tensors; by default the run's",
  )
  result.add_argument(
    "--shard_gb", type=float, default=5.0, help="largest exported file, in 1e9 bytes (%(default)s)"
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
  if args.shard_gb <= 0:
    options.error(f"--shard_gb={args.shard_gb} must be above 0")

  from launch import conversion

  words = shlex.join(["python", "-m", "launch.convert", *arguments])
  trusted = trust.Trust.of(args.trust)
  kind = conversion.kind_of(args.source)
  note = ""
  if kind == conversion.RUN and args.merge:
    conversion.merge(args.source, args.target, args.checkpoint, words, trusted)
  elif kind == conversion.RUN:
    if bindings:
      raise command.UserError(f"{bindings[0]} has no effect: Hugging Face files have no gin.")
    max_bytes = int(args.shard_gb * 1e9)
    note = conversion.export(
      args.source, args.target, args.checkpoint, args.dtype, max_bytes, trusted
    )
  else:
    conversion.take_in(kind, args.source, args.target, args.vocabulary, bindings, words)
  print(f"{args.target} is ready")
  if note:
    print(note)
  return 0


if __name__ == "__main__":
  command.run(main)
