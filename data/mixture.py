"""Several row files read as one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from data.manifest import RowFileError
from data.rows import RowFiles
from data.tokenizers import Tokenizer


class MixedRows:
  """Row files mixed by weight, with the same tokenizer and row length.

  Attributes:
    parts: the row files.
    weights: share of each part among the rows of a training run; they sum to 1.
  """

  def __init__(self, parts: Sequence[RowFiles], weights: Sequence[float]):
    """Mixes `parts`.

    Raises:
      ValueError: the weights are not one positive number per part.
      RowFileError: the parts have different tokenizers or lengths.
    """
    if not parts or len(parts) != len(weights) or any(w <= 0 for w in weights):
      raise ValueError(
        f"weights={list(weights)} must be one positive number for each of {len(parts)} components"
        " (at least one). Leave out a component that should not be drawn from."
      )
    for part in parts[1:]:
      if part.manifest.vocabulary != parts[0].manifest.vocabulary:
        raise RowFileError(
          f"{part.directory} and {parts[0].directory} cannot be mixed: their tokenizers are"
          f" {part.manifest.vocabulary} and {parts[0].manifest.vocabulary}."
          " Give every component the same tokenizer."
        )
      if part.sequence_length != parts[0].sequence_length:
        raise RowFileError(
          f"{part.directory} and {parts[0].directory} cannot be mixed: their rows hold"
          f" {part.sequence_length} and {parts[0].sequence_length} tokens."
          " Give every component the same sequence_length."
        )
    total = sum(weights)
    self.parts = tuple(parts)
    self.weights = tuple(w / total for w in weights)

  @property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer that all parts share."""
    return self.parts[0].tokenizer

  @property
  def sequence_length(self) -> int:
    """Tokens per row."""
    return self.parts[0].sequence_length

  def __len__(self) -> int:
    return sum(len(part) for part in self.parts)

  @property
  def bytes_per_token(self) -> float:
    """Mean bytes of text per target, weighted."""
    means = (part.bytes_per_token for part in self.parts)
    return sum(w * mean for w, mean in zip(self.weights, means, strict=True))

  def text_bytes(self, rows: int | None = None) -> int:
    """Returns the bytes of text in the first `rows` rows, the parts one after another."""
    total = 0
    left = len(self) if rows is None else rows
    for part in self.parts:
      total += part.text_bytes(max(left, 0))
      left -= len(part)
    return total

  @property
  def fingerprint(self) -> str:
    """Identifies the content: equal fingerprints mean equal batches."""
    identity = [(part.fingerprint, w) for part, w in zip(self.parts, self.weights, strict=True)]
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
