"""Text to text: prompts encoded, continued and decoded again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from data.tokenizers import Vocabulary
from inference.decode_sharding import DecodeSharding
from inference.decoder import ENDED, Decoder, identities_of, rows_of
from inference.sampling import Sampler
from inference.text_stream import TextStream, continuation
from models.language_model import LanguageModel

# Rows times length of a batch, as many as one row may be short of: a file of prompts may be of any
# length.
TOKENS_AT_ONCE = 2**16


class TextGenerator:
  """Continues texts with one model and one way to sample."""

  def __init__(
    self,
    model: LanguageModel,
    params: Any,
    vocabulary: Vocabulary,
    sampler: Sampler,
    where: DecodeSharding | None = None,
    *,
    stop_ids: Sequence[int] = (),
  ):
    """Ids that stand for no text are never drawn; the end of a document ends a row.

    Args:
      model, params, vocabulary: what generates.
      sampler: how tokens are drawn.
      where: the devices; one if None.
      stop_ids: ids that end a row as the vocabulary's end of a document does.
    """
    beyond = range(vocabulary.size, model.vocab_size)
    stops = {vocabulary.eos_id, *stop_ids}
    special = {vocabulary.pad_id, vocabulary.bos_id, vocabulary.unk_id} - stops
    self._decoder = Decoder(
      model,
      sampler,
      stop_ids=sorted(stops),
      forbidden_ids=[*special, *beyond],
      where=where,
    )
    self._params = params
    self._vocabulary = vocabulary

  def texts(self, prompts: Sequence[str], *, max_tokens: int, seed: int) -> list[str]:
    """The continuation of each prompt; '' starts a document."""
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
        found[row] = continuation(self._vocabulary, prompts[row], encoded[row][1:], ids)
    return found

  def streams(
    self, prompts: Sequence[str], *, max_tokens: int, seed: int, chunk: int = 4
  ) -> Iterator[Iterator[str]]:
    """The continuation of each prompt in pieces, as soon as they are certain; one after the
    other.
    """
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
      yield self._pieces(TextStream(self._vocabulary, prompt, encoded[row][1:]), chunks)

  @staticmethod
  def _pieces(text: TextStream, chunks: Iterator[Any]) -> Iterator[str]:
    for tokens in chunks:
      yield text.add([int(token) for token in tokens[0] if token != ENDED])
    yield text.end()

  def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
    return [[self._vocabulary.bos_id, *self._vocabulary.encode(prompt)] for prompt in prompts]


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
  """Indices of the prompts of each batch: all if they fit, or prompts of like lengths together."""
  order = list(range(len(lengths)))
  if lengths and len(lengths) * (max(lengths) + max_tokens) > TOKENS_AT_ONCE:
    order.sort(key=lambda index: -lengths[index])
  while order:
    longest = max(lengths[index] for index in order)
    rows = max(1, TOKENS_AT_ONCE // (longest + max_tokens))
    yield order[:rows]
    order = order[rows:]
