"""Examples that are drawn once are those that the task draws."""

import dataclasses

import numpy as np

from data import drawn_examples, tokenizers
from data.recall import InductionHeads
from data.ruler import Needles

BYTES = tokenizers.Bytes()


def same(found, expected):
  return len(found) == len(expected) and all(
    np.array_equal(a.tokens, b.tokens) and np.array_equal(a.answers, b.answers)
    for a, b in zip(found, expected, strict=True)
  )


def test_each_task_split_and_tokenizer_has_its_own_examples(monkeypatch):
  monkeypatch.setattr(drawn_examples, "_kept", {})
  needles = Needles(length=600, heldout_examples=3)
  others = [
    (needles, BYTES, "heldout"),
    (needles, BYTES, "validation"),
    (dataclasses.replace(needles, seed=7), BYTES, "heldout"),
    (dataclasses.replace(needles, heldout_examples=2), BYTES, "heldout"),
    (needles.with_length(700), BYTES, "heldout"),
    (needles, tokenizers.Bytes(extra_ids=5), "heldout"),
    (InductionHeads(heldout_examples=3), tokenizers.Symbols(16), "heldout"),
  ]
  for _ in range(2):
    for task, tokenizer, split in others:
      found = drawn_examples.of(task, tokenizer, split)
      assert same(found, list(task.drawn(tokenizer, split)))
  assert len(drawn_examples._kept) == len(others)


def test_examples_are_drawn_once_while_there_is_room(monkeypatch):
  monkeypatch.setattr(drawn_examples, "_kept", {})
  first, second = (Needles(length=length, heldout_examples=2) for length in (600, 900))
  kept = drawn_examples.of(first, BYTES, "heldout")
  # Room for what is there, and no more.
  monkeypatch.setattr(drawn_examples, "_MOST", sum(map(drawn_examples._bytes, kept)))
  once = drawn_examples.of(second, BYTES, "heldout")
  again = drawn_examples.of(second, BYTES, "heldout")
  assert once is not again
  assert same(once, again)
  assert drawn_examples.of(first, BYTES, "heldout") is kept
