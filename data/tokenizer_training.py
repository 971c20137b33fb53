"""Trains tokenizers on a corpus: SentencePiece models and `tokenizer.json` files, both BPE."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from base import buckets, paths, small_files
from data import tokenizer_json, tokenizers
from data.corpora import CorpusError, Documents
from data.tokenizer_json import TokenizerJson
from data.tokenizers import SentencePiece, TokenizerError

# SentencePiece leaves out longer sentences, with only a line in its log.
_SENTENCE_BYTES = 4000

# A constant, because the model file records it: the same text must give the same file everywhere.
_THREADS = 8


def _sentences(text: str) -> Iterator[str]:
  """Cuts a document after line ends, into sentences that SentencePiece accepts."""
  sentence, size = [], 0
  for line in text.splitlines(keepends=True):
    for start in range(0, len(line), _SENTENCE_BYTES // 4):
      piece = line[start : start + _SENTENCE_BYTES // 4]  # A character has at most 4 bytes.
      length = len(piece.encode("utf-8"))
      if size + length > _SENTENCE_BYTES:
        yield "".join(sentence)
        sentence, size = [], 0
      sentence.append(piece)
      size += length
  if sentence:
    yield "".join(sentence)


def _sampled(corpus: Documents, megabytes: float) -> Iterator[str]:
  """Yields the sentences of about `megabytes` of training documents, chosen by their hash."""
  share = megabytes * 1e6 / max(corpus.total_bytes(), 1)
  for document in corpus.documents("train"):
    if int.from_bytes(hashlib.sha256(b"sample" + document).digest()[:8], "big") < share * 2**64:
      # SentencePiece's own mark for a space, and NUL, cannot be part of a piece.
      text = document.decode("utf-8", errors="replace").replace("▁", " ").replace("\0", " ")
      yield from _sentences(text)


def _refused(name: str, size: int, error: str) -> str:
  """Turns SentencePiece's error about a size into one with a fix."""
  if most := re.search(r"value <= (\d+)", error):
    return (
      f"{name} has too little text for {size} pieces: at most {most[1]}. Set --size={most[1]} or "
      "lower, or give more text."
    )
  if "required_chars" in error:
    needed = re.findall(r"\d+", error.partition("required_chars")[2])
    more = max(map(int, needed), default=size) + 1
    return f"{size} pieces are too few for the characters of {name}. Set --size={more} or higher."
  return f"SentencePiece could not train {size} pieces: {' '.join(error.split())[:300]}"


def _no_text(corpus: Documents, megabytes: float) -> str:
  return (
    f"{corpus.name} has no text to train a tokenizer on, or megabytes={megabytes} takes none of"
    " it. Give more of either."
  )


def _not_written(output: Path, error: OSError) -> str:
  return f"{output} cannot be written: {error.strerror or error}. Give another --output."


def _require_writable(output: Path) -> None:
  """Raises TokenizerError, before minutes of work, if a file cannot be written in its folder."""
  try:
    if buckets.in_bucket(output):
      probe = output.with_name(f"{output.name}.probe")
      probe.touch()
      probe.unlink()
      return
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output.parent):  # Without a name: a kill leaves nothing.
      pass
  except OSError as error:
    raise TokenizerError(_not_written(output, error)) from None


def train_sentencepiece(
  corpus: Documents, size: int, output: str | Path, *, megabytes: float = 50.0
) -> SentencePiece:
  """Trains a lossless model: BPE without normalisation, with bytes as a fallback.

  Ids are seqio's: 0 padding, 1 EOS, 2 unknown, and no BOS. Held-out documents are not used.

  Args:
    corpus: source of the documents.
    size: number of pieces, at least 300: 3 special ids, 256 bytes, and characters.
    output: the `.model` file to write; it appears completely or not at all.
    megabytes: about how much text to train on, sampled by hash from a larger corpus.

  Raises:
    CorpusError: there is no training text, or too little for this many pieces.
    TokenizerError: the file cannot be written.
  """
  import sentencepiece

  output = paths.of(output)
  sentences = _sampled(corpus, megabytes)
  first = next(sentences, None)
  if first is None:
    raise CorpusError(_no_text(corpus, megabytes))

  def chain() -> Iterator[str]:
    yield first
    yield from sentences

  model = io.BytesIO()
  _require_writable(output)
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=chain(),
      model_writer=model,
      model_type="bpe",
      vocab_size=size,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      byte_fallback=True,
      character_coverage=0.9995,
      # Lossless: decoding restores the text, including indentation and line ends.
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      allow_whitespace_only_pieces=True,
      split_digits=True,
      max_sentence_length=_SENTENCE_BYTES,
      num_threads=_THREADS,
      minloglevel=2,
    )
    small_files.replace(output, model.getvalue())
  except OSError as error:
    raise TokenizerError(_not_written(output, error)) from None
  except RuntimeError as error:
    raise CorpusError(_refused(corpus.name, size, str(error))) from None
  tokenizers.forget()
  return SentencePiece(str(output))


END_OF_TEXT = "<|endoftext|>"


def train_tokenizer_json(
  corpus: Documents, size: int, output: str | Path, *, megabytes: float = 50.0
) -> TokenizerJson:
  """Trains a lossless BPE of bytes on all cores, in the format of the `tokenizers` library.

  Text is split as by GPT-2, and each digit is a token. `<|endoftext|>` is BOS and EOS. An output
  named tokenizer.json gets a tokenizer_config.json, so that `transformers` loads the folder.

  Args:
    corpus: its training documents are learned from.
    size: number of tokens, at least 257; less text may give fewer.
    output: the file to write; it appears completely or not at all.
    megabytes: about how much text to train on, sampled by hash from a larger corpus.

  Raises:
    CorpusError: there is no training text.
    TokenizerError: the file cannot be written.
  """
  import tokenizers as library

  output = paths.of(output)
  sentences = _sampled(corpus, megabytes)
  first = next(sentences, None)
  if first is None:
    raise CorpusError(_no_text(corpus, megabytes))
  _require_writable(output)
  tokenizer = library.Tokenizer(library.models.BPE())
  # The library's type stubs lack constructors.
  split: Any = library.pre_tokenizers
  tokenizer.pre_tokenizer = split.Sequence(
    [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
  )
  tokenizer.decoder = library.decoders.ByteLevel()
  trainer = library.trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(itertools.chain([first], sentences), trainer)
  try:
    if output.name == tokenizer_json.FILE:
      named = {"tokenizer_class": "PreTrainedTokenizerFast"}
      named |= {f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos")}
      text = json.dumps(named, indent=2) + "\n"
      small_files.replace(output.with_name(tokenizer_json.CONFIG_FILE), text)
    small_files.replace(output, tokenizer.to_str(pretty=True))
  except OSError as error:
    raise TokenizerError(_not_written(output, error)) from None
  tokenizer_json.forget()
  return TokenizerJson(str(output))
