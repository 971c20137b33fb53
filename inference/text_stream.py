"""Turns a growing list of token ids into text, piece by piece, as it reads after its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

# Enough ids to decide how the next ones read (a space before a word, say).
_CONTEXT = 16
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextVocabulary(Protocol):
  """The part of a vocabulary that is needed here."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; bytes that do not form a character yet give no text, or U+FFFD."""
    ...


class TextStream:
  """Gives the text of tokens as soon as it is certain.

  Tokens are decoded behind those of the prompt. Alone they would read otherwise: most SentencePiece
  models drop the space before the first word of what they decode. A character of UTF-8 may be
  spread over several tokens: its text comes with the last one.
  """

  def __init__(self, vocabulary: TextVocabulary, prompt: str = "", prompt_ids: Sequence[int] = ()):
    """Sets what the tokens continue.

    Args:
      vocabulary: of the ids.
      prompt: the text that is continued.
      prompt_ids: its ids, without BOS; only the last ones if it was cut.
    """
    self._vocabulary = vocabulary
    self._ids = list(prompt_ids)
    text = vocabulary.decode(self._ids)
    # A vocabulary that writes a space after each word has added one to the prompt: it is still to
    # come.
    self._shown = len(text) - max(0, _spaces_at_end(text) - _spaces_at_end(prompt))
    self._shorten(text)

  def add(self, ids: Sequence[int]) -> str:
    """Takes further tokens; returns the text that they complete."""
    self._ids += ids
    text = self._vocabulary.decode(self._ids)
    new = _certain(text)[self._shown :]
    self._shown += len(new)
    self._shorten(text)
    return new

  def end(self) -> str:
    """Returns what was held back."""
    new = self._vocabulary.decode(self._ids)[self._shown :]
    self._shown += len(new)
    return new

  def _shorten(self, text: str) -> None:
    """Drops ids that no longer matter: decoding all for every few new ones takes quadratic time.

    Args:
      text: of all ids.
    """
    size = _CONTEXT
    while 8 * size < len(self._ids):
      last = self._vocabulary.decode(self._ids[-size:])
      shown = len(last) - (len(text) - self._shown)
      # Only what follows a visible character reads the same after any other text.
      if shown >= 0 and last.replace(_REPLACEMENT, " ").strip():
        self._ids, self._shown = self._ids[-size:], shown
        return
      size *= 2


def continuation(
  vocabulary: TextVocabulary, prompt: str, prompt_ids: Sequence[int], ids: Sequence[int]
) -> str:
  """The text of `ids` as it reads after the prompt; see `TextStream`."""
  stream = TextStream(vocabulary, prompt, prompt_ids)
  return stream.add(ids) + stream.end()


def _certain(text: str) -> str:
  """The text without an incomplete character at its end (at most three bytes are missing)."""
  held = text[-3:]
  return text[: len(text) - len(held)] + held.rstrip(_REPLACEMENT)


def _spaces_at_end(text: str) -> int:
  return len(text) - len(text.rstrip(" "))
