"""Imports and exports Hugging Face's weights: `python -m launch.convert SOURCE TARGET`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

if not __package__:  # started by its path
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from base import bucket_copies, buckets, commands, paths
from experiment import trust
from launch import command

DESCRIPTION = """\
Converts published weights to a run directory, or a run directory to Hugging Face files.

SOURCE decides: a folder with config.json and safetensors (Hugging Face: Llama, Mamba-2,
RecurrentGemma) or an Orbax checkpoint (DeepMind's Flax code of RecurrentGemma) becomes a run
directory; a run directory of any model of the zoo becomes Hugging Face files. TARGET is written
completely or not at all. --gin. bindings change the configuration of a new run
directory."""


def parser() -> command.Parser:
  """Builds the argument parser of the command."""
  result = command.parser("convert", DESCRIPTION)
  result.add_argument("source", type=paths.argument, help="the folder to read")
  result.add_argument("target", type=paths.argument, help="the folder to create")
  result.add_argument(
    "--vocabulary",
    help="import: the tokenizer, a SentencePiece model, a tokenizer.json or 'bytes' "
    "(default: tokenizer.model or tokenizer.json in SOURCE, or tokenizer.model above it)",
  )
  result.add_argument(
    "--checkpoint",
    default="best",
    help="export, --merge: 'best', 'latest' or a step (default: %(default)s)",
  )
  result.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="export: type of the tensors (default: the run's)",
  )
  result.add_argument(
    "--shard_gb",
    type=float,
    default=5.0,
    help="export: largest file, in GB (default: %(default)s)",
  )
  result.add_argument(
    "--merge",
    action="store_true",
    help="merge a run's adapters into its weights, and write a run directory",
  )
  result.add_argument(
    "--own_code",
    action="store_true",
    help="export with this project's PyTorch code even if a class of transformers holds the model: "
    "for batches with padding, which transformers' RecurrentGemma gets wrong; with --adapters, if "
    "the model that they belong to is such an export",
  )
  result.add_argument(
    "--adapters",
    action="store_true",
    help="export a run's adapters alone, as files for the library PEFT",
  )
  result.add_argument(
    "--base",
    help="--adapters: name or folder of the model that they belong to, for PEFT",
  )
  trust.add_arguments(result)
  return result


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status."""
  options = parser()
  args, bindings = command.parse(options, arguments)
  if not 0 < args.shard_gb < 1e9:
    options.error(f"--shard_gb={args.shard_gb} must be above 0 and below 1e9")

  from conversion import conversion, export

  words = shlex.join([*commands.words("convert"), *arguments])
  trusted = trust.Trust.of(args.trust)
  kind = conversion.kind_of(args.source)
  notes: list[str] = []
  _check_together(options, args, bindings, kind == conversion.RUN)
  if kind == conversion.RUN and args.merge:
    conversion.merge(args.source, args.target, args.checkpoint, words, trusted)
  elif kind == conversion.RUN and args.adapters:
    export.export_adapters(
      args.source, args.target, args.checkpoint, args.base, trusted, own_code=args.own_code
    )
  elif kind == conversion.RUN:
    max_bytes = int(args.shard_gb * 1e9)
    notes = export.export(
      args.source,
      args.target,
      args.checkpoint,
      args.dtype,
      max_bytes,
      trusted,
      own_code=args.own_code,
    )
  else:
    with bucket_copies.local_copy(args.source) as source:
      conversion.import_weights(
        kind, source, args.target, args.vocabulary, bindings, words, args.source
      )
  print(f"{paths.shown(args.target)} is ready")
  for note in notes:
    print(note)
  target = paths.shown(args.target)
  if kind == conversion.RUN and not args.merge and buckets.in_bucket(args.target):
    pass  # Hugging Face's libraries read no buckets.
  elif kind == conversion.RUN and args.adapters:
    print(f"next: peft.PeftModel.from_pretrained(model, {target!r})", file=sys.stderr)
  elif kind == conversion.RUN and not args.merge:
    remote = ", trust_remote_code=True" if "trust_remote_code" in notes[0] else ""
    load = f"transformers.AutoModelForCausalLM.from_pretrained({target!r}{remote})"
    print(f"next: {load}", file=sys.stderr)
  else:
    words = [*commands.words("generate"), f"--run_dir={target}"]
    command.tell_next(*words, *trust.words(args.trust))
  return 0


def _check_together(
  options: command.Parser, args: argparse.Namespace, bindings: Sequence[str], of_run: bool
) -> None:
  """Refuses options that have no effect on this conversion."""
  source = paths.shown(args.source)
  if not of_run:
    names = ("checkpoint", "dtype", "shard_gb", "merge", "own_code", "adapters", "base")
    command.refuse(options, args, names, f"on {source}, which is not a run directory")
    return
  command.refuse(options, args, ("vocabulary",), f"on {source}, which has its own tokenizer")
  if args.merge:
    names = ("dtype", "shard_gb", "own_code", "adapters", "base")
    command.refuse(options, args, names, "with --merge, which writes a run directory")
  elif args.adapters:
    names = ("dtype", "shard_gb")
    command.refuse(options, args, names, "with --adapters, which writes one file of float32")
  else:
    command.refuse(options, args, ("base",), "without --adapters")
  if bindings:
    what = "a run directory with the same configuration" if args.merge else "files without gin"
    options.error(f"{bindings[0]} has no effect: {source} becomes {what}")


if __name__ == "__main__":
  command.run(main)
