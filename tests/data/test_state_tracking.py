"""State tracking: answers as plain Python composes them."""

import itertools

import numpy as np
import pytest

from data import recall, tokenizers
from data.corpora import CorpusError
from data.state_tracking import StateTracking, multiplication_table
from data.tokenizers import Symbols

TOKENIZER = Symbols(121)


def asked(task, split="heldout", tokenizer=TOKENIZER):
  """The elements and the answer of each example, as symbols."""
  first = recall.symbol_ids(tokenizer, 1)[0]
  for example in task.drawn(tokenizer, split):
    (answer,) = example.answers
    symbols = (example.tokens[:-1] - first).tolist()
    assert example.tokens[-1] == tokenizer.eos_id
    assert len(symbols) == answer + 1
    *elements, asking, product = symbols
    assert asking == task.symbols - 1
    yield elements, product


@pytest.mark.parametrize("modulus", [2, 5, 60])
def test_addition_is_counted(modulus):
  task = StateTracking(group=f"Z{modulus}", length=30, heldout_examples=200)
  found = list(asked(task))
  assert len(found) == 200
  for elements, answer in found:
    assert answer == sum(elements) % modulus
  assert {len(elements) for elements, _ in found} >= set(range(2, 30))


@pytest.mark.parametrize("things", [2, 3, 5])
def test_permutations_are_applied_one_after_the_other(things):
  permutations = list(itertools.permutations(range(things)))
  for elements, answer in asked(StateTracking(group=f"S{things}", length=25, heldout_examples=100)):
    rows = list("abcde"[:things])
    for element in elements:
      moved = [""] * things
      for place, target in enumerate(permutations[element]):
        moved[target] = rows[place]
      rows = moved
    expected = permutations[answer]
    assert [rows[expected[i]] for i in range(things)] == list("abcde"[:things])


@pytest.mark.parametrize("group", ["Z2", "Z7", "S3", "S4"])
def test_a_group_is_a_group(group):
  table = multiplication_table(group)
  size = len(table)
  everything = np.arange(size)
  assert (table[0] == everything).all()
  assert (table[:, 0] == everything).all()
  assert (np.sort(table, axis=1) == everything).all()  # every element has an inverse
  a, b, c = np.ix_(everything, everything, everything)
  assert (table[table[a, b], c] == table[a, table[b, c]]).all()


def test_a_table_is_made_once():
  """Those of S5 took more than half of the time of a batch."""
  table = multiplication_table("S5")
  assert multiplication_table("S5") is table
  with pytest.raises(ValueError, match="read-only"):
    table[0, 0] = 1


def test_order_matters_where_it_does():
  assert (multiplication_table("S3") != multiplication_table("S3").T).any()
  assert (multiplication_table("Z5") == multiplication_table("Z5").T).all()


def test_every_answer_is_as_frequent_as_another():
  counts = np.bincount(
    [answer for _, answer in asked(StateTracking(group="S3", length=9), "train")]
  )
  assert len(counts) == 6
  assert counts.max() / counts.min() < 1.05


def test_another_length_is_that_length_alone_and_splits_differ():
  task = StateTracking(group="Z2", length=12, heldout_examples=100)
  assert {len(elements) for elements, _ in asked(task.with_length(50))} == {50}
  splits = {split: list(asked(task, split)) for split in ("heldout", "validation")}
  assert splits["heldout"] != splits["validation"]
  assert splits["heldout"] == list(asked(task))


@pytest.mark.parametrize(
  "group", ["", "Z", "Z1", "Z201", "S1", "S6", "A5", "z2", "Z2 ", "Z-2", "Z99999999", "S٣"]
)
def test_other_groups_are_told(group):
  with pytest.raises(CorpusError, match="is none of Z2 to Z200"):
    StateTracking(group=group)


def test_lengths_and_tokenizers_that_do_not_fit_are_told():
  with pytest.raises(CorpusError, match="the shortest must be 1 to 4"):
    StateTracking(length=4, shortest=5)
  with pytest.raises(CorpusError, match="has 121 symbols"):
    list(StateTracking(group="S5").drawn(Symbols(120), "heldout"))
  bytes_task = StateTracking(group="S3", heldout_examples=5)
  assert len(list(asked(bytes_task, tokenizer=tokenizers.Bytes()))) == 5
