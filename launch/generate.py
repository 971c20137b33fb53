"""Continues text with a trained model: `python -m launch.generate --run_dir=runs/x --prompt='def
'`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started by its path
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from base import commands, paths
from base.errors import UserError, is_out_of_memory
from experiment import trust
from launch import command

if TYPE_CHECKING:
  from experiment.experiment import Dataset
  from inference.text_generator import TextGenerator

# Positions are int32.
_MOST_TOKENS = 2**30

DESCRIPTION = """\
Continues prompts with the model of a run. Needs only the run directory.

The same prompt and seed give the same text, whatever the other prompts are."""


def parser() -> command.Parser:
  """Builds the argument parser of the command."""
  result = command.parser("generate", DESCRIPTION)
  result.epilog = None  # --mesh says what bindings are for
  result.add_argument("--run_dir", type=paths.argument, required=True, help="the folder of the run")
  result.add_argument(
    "--checkpoint", default="best", help="'best', 'latest' or a step (default: %(default)s)"
  )
  result.add_argument(
    "--prompt",
    action="append",
    default=[],
    help="text to continue; may be repeated. Without a prompt, starts a document.",
  )
  result.add_argument(
    "--prompts_file",
    type=paths.argument,
    help="a file with one prompt per line; lines end in \\n or \\r\\n",
  )
  result.add_argument(
    "--temperature",
    type=float,
    default=0.8,
    help="0 takes the most likely token (default: %(default)s)",
  )
  result.add_argument("--top_k", type=int, help="sample from the k most likely tokens")
  result.add_argument(
    "--top_p",
    type=float,
    default=0.95,
    help="sample from the most likely tokens up to this total probability (default: %(default)s)",
  )
  result.add_argument(
    "--seed", type=int, default=0, help="only its low 32 bits count (default: %(default)s)"
  )
  result.add_argument(
    "--max_tokens",
    type=int,
    default=256,
    help="the most tokens to generate per prompt (default: %(default)s)",
  )
  result.add_argument(
    "--mesh",
    help="split the model over devices: a gin file such as mesh/megatron8_zero1.gin, with macros "
    "such as --gin.MODEL_SHARDS=4 (default: one device)",
  )
  trust.add_arguments(result)
  result.add_argument("--stream", action="store_true", help="print text as it is generated")
  return result


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status."""
  options = parser()
  args, bindings = command.parse(options, arguments)
  if bindings and not args.mesh:
    options.error(f"{bindings[0]} needs --mesh: overrides are only allowed with it")
  if not 1 <= args.max_tokens <= _MOST_TOKENS:
    options.error(f"--max_tokens={args.max_tokens} must be at least 1 and at most {_MOST_TOKENS}")
  if args.temperature == 0:
    names = ("top_k", "top_p", "seed")
    command.refuse(options, args, names, "with --temperature=0, which takes the most likely token")
  prompts = _prompts(args.prompt, args.prompts_file)

  from experiment import end_tokens, step_memory
  from experiment import trained as trained_lib
  from experiment.run_directory import RunDirectory
  from inference import decode_sharding
  from inference.sampling import Sampler
  from inference.text_generator import TextGenerator

  try:
    sampler = Sampler(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
  except ValueError as error:
    options.error(f"--{error}")
  trained = trained_lib.load(
    RunDirectory(args.run_dir),
    args.checkpoint,
    mesh=args.mesh,
    arguments=bindings,
    trust=trust.Trust.of(args.trust),
  )
  where = decode_sharding.of(trained.sharding_plan, step_memory.of_device())
  generator = TextGenerator(
    trained.experiment.model,
    trained.params,
    trained.tokenizer,
    sampler,
    where,
    stop_ids=end_tokens.stop_ids(trained.run_dir, trained.experiment),
  )
  try:
    _generate(generator, prompts, args)
  except Exception as error:
    if not is_out_of_memory(error):
      raise
    raise UserError(
      f"not enough memory for {args.max_tokens} tokens after prompts of up to "
      f"{max(map(len, prompts))} characters. Give a smaller --max_tokens, shorter prompts, or a "
      "--mesh."
    ) from error
  _tell_next(args, trained.experiment.eval_data)
  return 0


def _generate(generator: TextGenerator, prompts: list[str], args: argparse.Namespace) -> None:
  """Prints each prompt with its continuation."""
  if args.stream:
    streams = generator.streams(prompts, max_tokens=args.max_tokens, seed=args.seed)
    for number, (prompt, pieces) in enumerate(zip(prompts, streams, strict=True)):
      _head(number, prompts)
      _show(prompt)
      for text in pieces:
        _show(text)
      _show("\n")
    return
  texts = generator.texts(prompts, max_tokens=args.max_tokens, seed=args.seed)
  for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
    _head(number, prompts)
    _show(f"{prompt}{text}\n")


def _tell_next(args: argparse.Namespace, data: Dataset) -> None:
  from data.recall import RecallTask

  # A recall task has answers at one position alone.
  by_position = isinstance(getattr(data, "corpus", None), RecallTask)
  command.tell_next(
    *commands.words("evaluate"),
    f"--run_dir={paths.shown(args.run_dir)}",
    *([] if by_position else ["--by_position"]),
    *trust.words(args.trust),
  )


def _prompts(given: list[str], file: Path | None) -> list[str]:
  """Returns all prompts; without any, an empty one, which starts a document."""
  prompts = list(given)
  if file is not None:
    if file.is_char_device() and not sys.stdin.isatty():
      raise UserError(f"{file} is a device, which may never end. Give a file.")
    try:
      prompts += _lines(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
      raise UserError(
        f"--prompts_file={paths.shown(file)} cannot be read: {error.strerror}. Name a text file "
        "with a prompt per line."
      ) from None
    except UnicodeDecodeError as error:
      raise UserError(
        f"--prompts_file={paths.shown(file)} is not UTF-8 ({error}). Save it as UTF-8."
      ) from None
    if not prompts:
      raise UserError(f"--prompts_file={paths.shown(file)} contains no prompt. Write one per line.")
  for prompt in prompts:
    # Python decodes bytes of the command line that are not UTF-8 as lone surrogates.
    if not prompt.isprintable() and any("\ud800" <= character <= "\udfff" for character in prompt):
      raise UserError(f"the prompt {prompt!r} is not UTF-8.")
  return prompts or [""]


def _lines(text: str) -> list[str]:
  r"""Splits a text at \n and \r\n.

  `str.splitlines` would also split at characters such as U+2028 and form feed.
  """
  *lines, last = text.split("\n")
  return [line.removesuffix("\r") for line in [*lines, *([last] if last else [])]]


def _head(number: int, prompts: list[str]) -> None:
  if len(prompts) > 1:
    _show(f"--- prompt {number + 1} of {len(prompts)}\n")


def _show(text: str) -> None:
  sys.stdout.write(text)
  sys.stdout.flush()


if __name__ == "__main__":
  command.run(main)
