"""Trains a tokenizer: `python -m launch.vocabulary --input=... --output=x.model` or `x.json`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if not __package__:  # started by its path
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from base import commands, paths
from base.wording import plural
from launch import command

# Slow imports are made where they are used, so that --help and errors appear at once.
if TYPE_CHECKING:
  from data import corpora

DESCRIPTION = """\
Trains a BPE tokenizer on text, and prints its bytes per token on held-out text.

--output=NAME.json writes a tokenizer.json of the tokenizers library, any other name a SentencePiece
model with seqio's ids. Decoding an encoded text returns the same text."""

_JSON_LINES = (".json", ".jsonl", ".ndjson")

# 3 special ids, 256 bytes and a character; no model has a larger embedding.
_LEAST_SIZE, _MOST_SIZE = 260, 2**20


def parser() -> command.Parser:
  """Builds the argument parser of the command."""
  result = command.parser("vocabulary", DESCRIPTION, takes_bindings=False)
  result.add_argument(
    "--input",
    required=True,
    action="append",
    type=paths.text_argument,
    help="'python' (CPython's standard library) or a path or glob pattern: *.json, *.jsonl and "
    "*.ndjson are JSON lines, other files plain text, each also packed (.gz, .xz, .zst). May be "
    "repeated.",
  )
  result.add_argument(
    "--output",
    type=paths.argument,
    required=True,
    help="the file to write: NAME.json is a tokenizer.json, other names are SentencePiece models",
  )
  result.add_argument(
    "--size", type=int, default=8000, help="number of tokens (default: %(default)s)"
  )
  result.add_argument(
    "--field", default="text", help="key of the text in JSON lines (default: %(default)s)"
  )
  result.add_argument(
    "--megabytes",
    type=float,
    default=50.0,
    help="about how much text to train on (default: %(default)s)",
  )
  return result


def corpus_of(inputs: Sequence[str], field: str) -> corpora.Documents:
  """Returns the corpus that the inputs name.

  Raises:
    CorpusError: the inputs are of different kinds.
  """
  from data import corpora
  from data.files import without_packing

  if list(inputs) == ["python"]:
    return corpora.PythonLibrary()
  json_lines = [without_packing(pattern).endswith(_JSON_LINES) for pattern in inputs]
  if "python" in inputs or len(set(json_lines)) != 1:
    raise corpora.CorpusError(
      f"--input={', '.join(inputs)}: all inputs must be of one kind: 'python', JSON lines or text."
    )
  if json_lines[0]:
    return corpora.JsonLines(list(inputs), field=field)
  return corpora.TextFiles(list(inputs))


def _require_plain(corpus: corpora.Documents) -> None:
  """Raises CorpusError if JSON lines are among plain text: they would be learnt as they stand."""
  from data import corpora
  from data.file_corpora import files_of
  from data.json_lines import looks_like_json_lines

  if isinstance(corpus, corpora.TextFiles):
    found = next(filter(looks_like_json_lines, files_of(corpus)), None)
    if found is not None:
      raise corpora.CorpusError(
        f"{paths.shown(found)} has JSON lines. Name such files by their ending, such as "
        f"--input='{paths.shown(found.parent)}/*{''.join(found.suffixes[-2:])}'."
      )


def _require_replaceable(output: Path, corpus: corpora.Documents) -> None:
  """Raises CorpusError if the output is text to train on, or another file than a tokenizer."""
  from data import corpora, tokenizer_json, tokenizers
  from data.file_corpora import files_of

  shown = paths.shown(output)
  config = output.with_name(tokenizer_json.CONFIG_FILE)
  if not output.exists():
    if output.name == tokenizer_json.FILE and config.exists():
      raise corpora.CorpusError(
        f"--output={shown} would replace {paths.shown(config)}, which belongs to another tokenizer."
        " Name another folder."
      )
    return
  if hasattr(corpus, "files") and any(
    os.path.realpath(file) == os.path.realpath(output) for file in files_of(cast(Any, corpus))
  ):
    raise corpora.CorpusError(f"--output={shown} is text to train on. Name another file.")
  try:
    kind = tokenizer_json.TokenizerJson if _is_json(output) else tokenizers.SentencePiece
    kind(str(output)).describe()
  except tokenizers.TokenizerError:
    raise corpora.CorpusError(
      f"--output={shown} exists and is no tokenizer of this kind. Name another file."
    ) from None


def next_command(inputs: Sequence[str], field: str, output: str, size: int) -> list[str]:
  """Returns the command that trains a first model on this text with the new tokenizer."""
  from data.files import without_packing

  words = [*commands.words("train"), _run_file()]
  kind = "tokenizer" if _is_json(output) else "sentencepiece"
  files = inputs[0] if len(inputs) == 1 else repr(list(inputs))
  if list(inputs) == ["python"]:
    words += [f"gin/data/python_{kind}.gin"]
    words += [] if _is_json(output) else [f"--gin.VOCAB_SIZE={size}"]
  elif without_packing(inputs[0]).endswith(_JSON_LINES):
    words += [f"gin/data/json_lines_{kind}.gin", f"--gin.JSON_LINES={files}"]
    words += [] if field == "text" else [f"--gin.JSON_FIELD={field}"]
  else:
    words += [f"gin/data/text_files_{kind}.gin", f"--gin.TEXT_FILES={files}"]
  run_dir = paths.free(Path("runs") / Path(output).stem)
  return [*words, f"--gin.VOCABULARY_MODEL={output}", f"--run_dir={run_dir}"]


def _is_json(output: str | Path) -> bool:
  """Whether a name is that of a tokenizer.json."""
  return Path(output).suffix == ".json"


def _run_file() -> str:
  """Returns the only run file in the working directory, else one of gin/runs/."""
  from config import source
  from experiment import file_kinds

  own = []
  for file in sorted(Path().glob("*.gin")):
    # The command that loads an unreadable file reports it.
    with contextlib.suppress(source.ConfigError):
      if file_kinds.RUN in file_kinds.kinds(source.read_file(file)):
        own.append(str(file))
  return own[0] if len(own) == 1 else "gin/runs/griffin_quickstart.gin"


def main(arguments: Sequence[str]) -> int:
  """Trains the tokenizer, prints its bytes per token on held-out text, and the next command."""
  options = parser()
  args, _ = command.parse(options, arguments)
  if not _LEAST_SIZE <= args.size <= _MOST_SIZE:
    options.error(f"--size={args.size} must be from {_LEAST_SIZE} to {_MOST_SIZE}")
  if not 0 < args.megabytes < float("inf"):
    options.error(f"--megabytes={args.megabytes} must be a number above 0")
  if args.output.is_dir():
    options.error(f"--output={args.output} is a folder: name the file to write in it")

  from data.corpora import CorpusError
  from data.files import NoFiles
  from data.heldout import TooLittleText
  from data.tokenizer_training import train_sentencepiece, train_tokenizer_json
  from experiment.run_directory import RunDirectory

  # A run keeps its tokenizer under such names.
  RunDirectory(args.output).require_outside_of_runs("--output")
  corpus = corpus_of(args.input, args.field)
  try:
    _require_plain(corpus)
    _require_replaceable(args.output, corpus)
    train = train_tokenizer_json if _is_json(args.output) else train_sentencepiece
    tokenizer = train(corpus, args.size, args.output, megabytes=args.megabytes)
  except NoFiles as error:
    raise NoFiles(
      f"no file matches --input={paths.shown(error.pattern)}. Correct the path; --input may be "
      "given several times."
    ) from None
  except TooLittleText as error:
    raise CorpusError(f"{error.what} Give more text: --input may be given several times.") from None
  output = paths.shown(args.output)
  kind = "token" if _is_json(args.output) else "piece"
  print(f"{output}: {plural(tokenizer.size, kind)}, sha256 {tokenizer.describe()['sha256']}")
  if tokenizer.size < args.size:
    print(
      f"fewer than --size={args.size}: each word of the text is a token. More text gives more.",
      file=sys.stderr,
    )
  texts = [text.decode("utf-8", errors="replace") for text in corpus.documents("heldout")]
  size = sum(len(text.encode("utf-8")) for text in texts)
  tokens = sum(len(tokenizer.encode(text)) for text in texts)
  print(f"held-out text: {size / max(tokens, 1):.2f} bytes per token ({plural(size, 'byte')})")
  shown = [text if text == "python" else paths.shown(text) for text in args.input]
  command.tell_next(*next_command(shown, args.field, output, tokenizer.size))
  return 0


if __name__ == "__main__":
  command.run(main)
