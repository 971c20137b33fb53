"""Keeps the examples of recall tasks that were drawn: comparisons ask every model the same ones.

A context of 131,072 tokens is tokenized a few times until it is filled, which takes seconds.
"""

from __future__ import annotations

import json

from data.recall import RecallExample, RecallTask
from data.tokenizers import Tokenizer

# Bytes of examples that are kept. The first stay: tasks are asked in turn, so that the least
# recently asked is the next one.
_MOST = 2**30

_kept: dict[str, list[RecallExample]] = {}


def of(task: RecallTask, tokenizer: Tokenizer, split: str) -> list[RecallExample]:
  """Returns the examples of a split, which the caller must not change.

  Raises:
    CorpusError: see `RecallTask.drawn`.
  """
  key = json.dumps([task.describe(), tokenizer.describe(), split], sort_keys=True)
  if key in _kept:
    return _kept[key]
  found = list(task.drawn(tokenizer, split))
  if sum(map(_bytes, (e for kept in (*_kept.values(), found) for e in kept))) <= _MOST:
    _kept[key] = found
  return found


def _bytes(example: RecallExample) -> int:
  return example.tokens.nbytes + example.answers.nbytes + example.sources.nbytes
