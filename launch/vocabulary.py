"""Trains a SentencePiece vocabulary: `python -m launch.vocabulary --input=... --output=x.model`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data import corpora
from data.vocabulary_training import train_sentencepiece


def parser() -> argparse.ArgumentParser:
  """Returns the command's arguments."""
  result = argparse.ArgumentParser(prog="python -m launch.vocabulary", description=__doc__)
  result.add_argument(
    "--input",
    required=True,
    action="append",
    help="'python' (what CPython carries) or a path or glob pattern; *.json and *.jsonl are read as"
    " JSON lines, anything else as plain text. May be given several times.",
  )
  result.add_argument("--output", required=True, help="the model file to write")
  result.add_argument("--size", type=int, default=8000, help="number of pieces (%(default)s)")
  result.add_argument("--field", default="text", help="the text's key in JSON lines (%(default)s)")
  result.add_argument(
    "--megabytes", type=float, default=50.0, help="about how much text to learn from (%(default)s)"
  )
  return result


def corpus_of(inputs: Sequence[str], field: str) -> corpora.Documents:
  """Returns the corpus that the inputs name.

  Raises:
    CorpusError: they are of different kinds.
  """
  if list(inputs) == ["python"]:
    return corpora.PythonLibrary()
  json_lines = [pattern.endswith((".json", ".jsonl")) for pattern in inputs]
  if "python" in inputs or len(set(json_lines)) != 1:
    raise corpora.CorpusError(
      f"--input={', '.join(inputs)}: all inputs must be of one kind: 'python', JSON lines or text."
    )
  if json_lines[0]:
    return corpora.JsonLines(list(inputs), field=field)
  return corpora.TextFiles(list(inputs))


def main(arguments: Sequence[str] | None = None) -> int:
  """Trains the vocabulary and says how many bytes of held-out text a token spells."""
  args = parser().parse_args(arguments)
  try:
    corpus = corpus_of(args.input, args.field)
    vocabulary = train_sentencepiece(corpus, args.size, args.output, megabytes=args.megabytes)
  except corpora.CorpusError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(f"{args.output}: {vocabulary.size} pieces, sha256 {vocabulary.describe()['sha256']}")
  texts = [text.decode("utf-8", errors="replace") for text in corpus.documents("heldout")]
  size = sum(len(text.encode("utf-8")) for text in texts)
  if size:
    tokens = sum(len(vocabulary.encode(text)) for text in texts)
    print(f"held-out text: {size / tokens:.2f} bytes per token ({size} bytes)")
  return 0


if __name__ == "__main__":
  sys.exit(main())
