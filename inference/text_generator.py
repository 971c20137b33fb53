"""Generates text from text: encodes prompts, continues and decodes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from data.tokenizers import Tokenizer
from inference.decode_sharding import DecodeSharding
from inference.decoder import ENDED, Decoder, identities_of, rows_of
from inference.sampling import Sampler
from inference.text_stream import TextStream, continuation
from models.language_model import LanguageModel

# Most rows times length of a batch of several rows: a file may have any number of prompts.
TOKENS_AT_ONCE = 2**16


class TextGenerator:
  """Continues texts with a model and a sampler."""

  def __init__(
    self,
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    sampler: Sampler,
    where: DecodeSharding | None = None,
    *,
    stop_ids: Sequence[int] = (),
  ):
    """Sets the model and the sampler.

    Ids without text are never drawn; the end of a document ends a row.

    Args:
      model, params, tokenizer: the model, its parameters and tokenizer.
      sampler: the sampler.
      where: the devices; None is one device.
      stop_ids: ids that end a row, in addition to the tokenizer's EOS.
    """
    beyond = range(tokenizer.size, model.vocab_size)
    stops = {tokenizer.eos_id, *stop_ids}
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id} - stops
    self._decoder = Decoder(
      model,
      sampler,
      stop_ids=sorted(stops),
      forbidden_ids=[*special, *beyond],
      where=where,
    )
    self._params = params
    self._tokenizer = tokenizer

  def texts(self, prompts: Sequence[str], *, max_tokens: int, seed: int) -> list[str]:
    """Returns the continuation of each prompt; '' starts a document."""
    encoded = self._encode(prompts)
    identities = identities_of(encoded)
    found = [""] * len(prompts)
    for rows in _batches([len(ids) for ids in encoded], max_tokens):
      chunks = self._decoder.generate(
        self._params,
        [encoded[row] for row in rows],
        max_tokens=max_tokens,
        seed=seed,
        identities=identities[rows],
      )
      for row, ids in zip(rows, rows_of(chunks, len(rows)), strict=True):
        found[row] = continuation(self._tokenizer, prompts[row], encoded[row][1:], ids)
    return found

  def streams(
    self, prompts: Sequence[str], *, max_tokens: int, seed: int, chunk: int = 4
  ) -> Iterator[Iterator[str]]:
    """Yields each prompt's continuation, in turn, as an iterator of pieces of final text."""
    encoded = self._encode(prompts)
    identities = identities_of(encoded)
    for row, prompt in enumerate(prompts):
      chunks = self._decoder.generate(
        self._params,
        [encoded[row]],
        max_tokens=max_tokens,
        seed=seed,
        chunk=chunk,
        identities=identities[row : row + 1],
      )
      yield self._pieces(TextStream(self._tokenizer, prompt, encoded[row][1:]), chunks)

  @staticmethod
  def _pieces(text: TextStream, chunks: Iterator[Any]) -> Iterator[str]:
    for tokens in chunks:
      yield text.add([int(token) for token in tokens[0] if token != ENDED])
    yield text.end()

  def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
    return [[self._tokenizer.bos_id, *self._tokenizer.encode(prompt)] for prompt in prompts]


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
  """Returns the indices of the prompts of each batch: all, or prompts of similar lengths."""
  order = list(range(len(lengths)))
  if lengths and len(lengths) * (max(lengths) + max_tokens) > TOKENS_AT_ONCE:
    order.sort(key=lambda index: -lengths[index])
  while order:
    longest = max(lengths[index] for index in order)
    rows = max(1, TOKENS_AT_ONCE // (longest + max_tokens))
    yield order[:rows]
    order = order[rows:]
