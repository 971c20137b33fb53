"""The tasks of MAD: answers as a solver finds them that reads the document from left to right."""

import dataclasses

import numpy as np
import pytest

from data import recall, tokenizers
from data.corpora import CorpusError
from data.mad import FuzzyRecall, Memorization, RecallInContext

TOKENIZER = tokenizers.Symbols(255)


def drawn(task, split="heldout"):
  """The symbols, answers and sources of each example."""
  first = recall.symbol_ids(TOKENIZER, 1)[0]
  for example in task.drawn(TOKENIZER, split):
    assert example.tokens[-1] == TOKENIZER.eos_id
    assert (np.diff(example.answers) > 0).all()
    symbols = (example.tokens[:-1] - first).tolist()
    assert [symbols[n] for n in example.sources] == [
      symbols[n] if task.name != "memorization" else symbols[n - 1] for n in example.answers
    ]
    yield symbols, example.answers.tolist(), example.sources.tolist()


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.8])
def test_recall_in_context_asks_for_every_key_that_came_before(noise):
  task = RecallInContext(symbols=32, noise_symbols=16, noise=noise, heldout_examples=200, length=64)
  shares = []
  for symbols, answers, _ in drawn(task):
    assert len(symbols) == 64
    known, asked, clean = {}, [], 0
    for place in range(0, 64, 2):
      key, value = symbols[place : place + 2]
      if key >= 16:
        assert value >= 16
        continue
      clean += 1
      assert key < 8 <= value < 16
      if key in known:
        assert known[key] == value
        asked.append(place + 1)
      known[key] = value
    assert answers == asked
    assert answers[-1] == 63
    shares.append(1 - clean / 32)
  # One pair of an example is never noise, nor is the last.
  assert np.mean(shares) == pytest.approx(noise * 30 / 32, abs=0.02)


def test_keys_have_other_values_in_the_next_document():
  values = {symbols[1] for symbols, *_ in drawn(RecallInContext()) if symbols[0] == 3}
  assert values == set(range(8, 16))


def test_fuzzy_recall_is_solved_by_whole_keys():
  """A solver that looks for the longest known key before each value finds all answers."""
  task = FuzzyRecall(heldout_examples=300)
  sizes = set()
  for symbols, answers, _ in drawn(task):
    assert len(symbols) <= task.length
    known, place, asked = {}, 0, []
    while place < len(symbols):
      stop = place
      while stop < len(symbols) and symbols[stop] < 7:
        stop += 1
      key = tuple(symbols[place:stop])
      end = stop
      while end < len(symbols) and symbols[end] >= 7:
        end += 1
      value = tuple(symbols[stop:end])
      assert len(key) == len(set(key)) == 3
      assert len(value) == len(set(value)) <= 3
      if key in known:
        assert known[key] == value
        asked += range(stop, end)
      known[key] = value
      sizes.add(len(value))
      place = end
    assert answers == asked
    assert answers[-1] == len(symbols) - 1
  assert sizes == {1, 2, 3}


def test_fuzzy_keys_vary_in_training_alone():
  sizes = set()
  for symbols, *_ in drawn(FuzzyRecall(examples=200), "train"):
    sizes.add(next(n for n, symbol in enumerate(symbols) if symbol >= 7))
  assert sizes == {1, 2, 3}


def test_memorized_values_are_the_same_everywhere_and_never_in_the_document():
  known = {}
  for split in ("train", "heldout"):
    for symbols, answers, _ in drawn(Memorization(examples=300, heldout_examples=300), split):
      keys, values = symbols[::2], symbols[1::2]
      assert answers == list(range(1, 32, 2))
      assert len(set(keys)) == len(keys)
      for key, value in zip(keys, values, strict=True):
        assert key < 127 <= value < 255
        assert known.setdefault(key, value) == value
  assert len(known) == len(set(known.values())) == 127
  (other, *_), *_ = drawn(Memorization(map_seed=1, heldout_examples=1))
  assert [known[key] for key in other[::2]] != other[1::2]


def test_examples_do_not_depend_on_how_many_are_drawn():
  for task in (RecallInContext(), FuzzyRecall(), Memorization()):
    few = list(drawn(dataclasses.replace(task, heldout_examples=3)))
    assert list(drawn(dataclasses.replace(task, heldout_examples=70)))[:3] == few


@pytest.mark.parametrize(
  ("make", "told"),
  [
    (lambda: RecallInContext(length=7), "length=7: give an even number"),
    (lambda: RecallInContext(symbols=16, noise_symbols=15), "at least two must be left"),
    (lambda: RecallInContext(noise=0.5), "noise=0.5 with noise_symbols=0"),
    (lambda: RecallInContext(noise=1.0, noise_symbols=4), "a share below 1"),
    (lambda: FuzzyRecall(symbols=5), "longest_key=3 symbols: half of symbols=5"),
    (lambda: FuzzyRecall(symbols=7, longest_value=5), "longest_value=5"),
    (lambda: FuzzyRecall(length=12), "room for three pairs of 6 symbols"),
    (lambda: Memorization(length=33), "must be even"),
    (lambda: Memorization(symbols=20), "at most half of the symbols, 10"),
  ],
)
def test_impossible_sizes_are_one_clear_error(make, told):
  with pytest.raises(CorpusError, match=told):
    make()
