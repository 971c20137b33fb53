"""Turns a growing list of token ids into text, piece by piece."""

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


class TextStream:
  """Gives the text of tokens as soon as it is certain.

  A character of UTF-8 may be spread over several tokens: its text comes with the last one.
  """

  def __init__(self, vocabulary: TextVocabulary):
    self._vocabulary = vocabulary
    self._ids: list[int] = []
    self._shown = ""

  def add(self, ids: Sequence[int]) -> str:
    """Takes further tokens; returns the text that they complete."""
    self._ids += ids
    text = self._certain(self._vocabulary.decode(self._ids))
    new = text[len(self._shown) :]
    self._shown = text
    if len(self._ids) > 8 * _CONTEXT:
      # Decoding all ids again for every few new ones would take quadratic time.
      self._ids = self._ids[-_CONTEXT:]
      self._shown = self._certain(self._vocabulary.decode(self._ids))
    return new

  def end(self) -> str:
    """Returns what was held back."""
    text = self._vocabulary.decode(self._ids)
    new = text[len(self._shown) :]
    self._shown = text
    return new

  @staticmethod
  def _certain(text: str) -> str:
    """The text without an incomplete character at its end (at most three bytes are missing)."""
    held = text[-3:]
    return text[: len(text) - len(held)] + held.rstrip(_REPLACEMENT)
