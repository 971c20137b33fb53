"""Text to text: prompts encoded, continued and decoded again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from data.vocabularies import Vocabulary
from inference.decoder import ENDED, Decoder, rows_of
from inference.sampling import Sampler
from inference.text_stream import TextStream
from models.language_model import LanguageModel
from parallel.rows import Rows


class TextGenerator:
  """Continues texts with one model and one way to sample."""

  def __init__(
    self,
    model: LanguageModel,
    params: Any,
    vocabulary: Vocabulary,
    sampler: Sampler,
    where: Rows | None = None,
  ):
    """Ids that stand for no text are never drawn; the end of a document ends a row."""
    beyond = range(vocabulary.size, model.vocab_size)
    special = {vocabulary.pad_id, vocabulary.bos_id, vocabulary.unk_id} - {vocabulary.eos_id}
    self._decoder = Decoder(
      model,
      sampler,
      stop_ids=[vocabulary.eos_id],
      forbidden_ids=[*special, *beyond],
      where=where,
    )
    self._params = params
    self._vocabulary = vocabulary

  def texts(self, prompts: Sequence[str], *, max_tokens: int, seed: int) -> list[str]:
    """The continuation of each prompt; '' starts a document."""
    chunks = self._decoder.generate(
      self._params, self._encode(prompts), max_tokens=max_tokens, seed=seed
    )
    return [self._vocabulary.decode(row) for row in rows_of(chunks, len(prompts))]

  def stream(self, prompt: str, *, max_tokens: int, seed: int, chunk: int = 4) -> Iterator[str]:
    """The continuation of one prompt in pieces, as soon as they are certain."""
    text = TextStream(self._vocabulary)
    for tokens in self._decoder.generate(
      self._params, self._encode([prompt]), max_tokens=max_tokens, seed=seed, chunk=chunk
    ):
      yield text.add([int(token) for token in tokens[0] if token != ENDED])
    yield text.end()

  def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
    return [[self._vocabulary.bos_id, *self._vocabulary.encode(prompt)] for prompt in prompts]
