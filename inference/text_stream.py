"""Decodes a growing list of token ids to text, piece by piece, in the context of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

# Enough ids to decide how to decode the next ones (such as a space before a word).
_CONTEXT = 16
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextTokenizer(Protocol):
  """The part of a tokenizer that `TextStream` needs."""

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids; incomplete characters become no text, or U+FFFD."""
    ...


class TextStream:
  """Returns the text of tokens as soon as it is final.

  Tokens are decoded after those of the prompt, because most SentencePiece models drop the space
  before the first decoded word. The text of a UTF-8 character over several tokens comes with the
  last one.
  """

  def __init__(self, tokenizer: TextTokenizer, prompt: str = "", prompt_ids: Sequence[int] = ()):
    """Sets the prompt.

    Args:
      tokenizer: the tokenizer of the ids.
      prompt: the prompt's text.
      prompt_ids: its ids, without BOS; only the last ones if it was cut.
    """
    self._tokenizer = tokenizer
    self._ids = list(prompt_ids)
    text = tokenizer.decode(self._ids)
    # A tokenizer that writes a space after each word has added one to the prompt, which belongs to
    # the continuation.
    self._shown = len(text) - max(0, _spaces_at_end(text) - _spaces_at_end(prompt))
    self._shorten(text)

  def add(self, ids: Sequence[int]) -> str:
    """Adds tokens; returns the text that they complete."""
    self._ids += ids
    text = self._tokenizer.decode(self._ids)
    new = _certain(text)[self._shown :]
    self._shown += len(new)
    self._shorten(text)
    return new

  def end(self) -> str:
    """Returns the remaining text."""
    new = self._tokenizer.decode(self._ids)[self._shown :]
    self._shown += len(new)
    return new

  def _shorten(self, text: str) -> None:
    """Drops ids that no longer matter, since decoding all of them each time is quadratic.

    Args:
      text: the text of all ids.
    """
    size = _CONTEXT
    while 8 * size < len(self._ids):
      last = self._tokenizer.decode(self._ids[-size:])
      shown = len(last) - (len(text) - self._shown)
      # Only text after a visible character is decoded the same after any other text.
      if shown >= 0 and last.replace(_REPLACEMENT, " ").strip():
        self._ids, self._shown = self._ids[-size:], shown
        return
      size *= 2


def continuation(
  tokenizer: TextTokenizer, prompt: str, prompt_ids: Sequence[int], ids: Sequence[int]
) -> str:
  """Decodes `ids` in the context of the prompt; see `TextStream`."""
  stream = TextStream(tokenizer, prompt, prompt_ids)
  return stream.add(ids) + stream.end()


def _certain(text: str) -> str:
  """Removes an incomplete character at the end (at most three bytes are missing)."""
  held = text[-3:]
  return text[: len(text) - len(held)] + held.rstrip(_REPLACEMENT)


def _spaces_at_end(text: str) -> int:
  return len(text) - len(text.rstrip(" "))
