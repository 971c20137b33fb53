"""Recall tasks follow their definitions, are deterministic, and have answers in their contexts."""

import re

import numpy as np
import pytest

from data import recall, recall_text, tokenizers
from data.corpora import CorpusError

SYMBOLS = tokenizers.Symbols(32)
BYTES = tokenizers.Bytes()
TASKS = {
  "selective-copying": (recall.SelectiveCopying(length=40, data_tokens=6), SYMBOLS),
  "induction-heads": (recall.InductionHeads(length=20), SYMBOLS),
  "multi-query-recall": (recall.MultiQueryRecall(length=32, pairs=5, symbols=32), SYMBOLS),
  "phonebook": (recall_text.Phonebook(length=6), BYTES),
  "needle": (recall_text.Needle(length=150), BYTES),
}


def symbols(example):
  """Returns the document's symbols, numbered as by the task's authors, without EOS."""
  assert example.tokens[-1] == SYMBOLS.eos_id
  return example.tokens[:-1] - SYMBOLS.SPECIAL


@pytest.mark.parametrize("name", TASKS)
def test_every_answer_repeats_a_token_of_the_context(name):
  task, tokenizer = TASKS[name]
  assert task.name == name
  for example in task.drawn(tokenizer, "heldout"):
    assert example.tokens.dtype == np.int32
    assert (example.tokens[example.answers] == example.tokens[example.sources]).all()
    assert (example.sources < example.answers[0]).all()
    assert (np.diff(example.answers) > 0).all()
    assert (example.tokens >= 0).all()
    assert (example.tokens < tokenizer.size).all()
    assert np.flatnonzero(example.loss_mask).tolist() == example.answers.tolist()
    # The end is no answer.
    assert example.answers[-1] == len(example.tokens) - 2 or name == "multi-query-recall"


@pytest.mark.parametrize("name", TASKS)
def test_examples_depend_on_seed_and_split_alone(name):
  task, tokenizer = TASKS[name]

  def tokens(split, **changes):
    drawn = recall.dataclasses.replace(task, **changes).drawn(tokenizer, split)
    return [example.tokens.tolist() for example in drawn]

  first = tokens("heldout", heldout_examples=100)
  assert tokens("heldout", heldout_examples=100) == first
  assert tokens("heldout", heldout_examples=70) == first[:70]
  assert tokens("train", examples=100) != first
  assert tokens("heldout", heldout_examples=100, seed=1) != first
  assert len({tuple(ids) for ids in first}) > 95


@pytest.mark.parametrize("name", TASKS)
def test_what_decides_the_examples_is_described(name):
  task, _ = TASKS[name]
  assert task.describe() != task.with_length(task.length + 4).describe()
  assert task.with_length(task.length) == task


def test_selective_copying_copies_the_data_in_order_after_the_request():
  task, tokenizer = TASKS["selective-copying"]
  places = []
  for example in task.drawn(tokenizer, "heldout"):
    document = symbols(example)
    context, request, answer = np.split(document, [40, 41])
    assert request.tolist() == [15]
    assert np.flatnonzero(context).tolist() == example.sources.tolist()
    assert context[context > 0].tolist() == answer.tolist()
    assert len(answer) == 6
    assert set(answer) <= set(range(1, 15))
    places += example.sources.tolist()
  # Each place is as likely as any other: 1024 examples put 6 tokens at 40 places, 154 each.
  counts = np.bincount(places, minlength=40)
  assert abs(counts - 153.6).max() < 5 * np.sqrt(153.6)


def test_an_induction_head_recalls_what_followed_the_special_token():
  task, tokenizer = TASKS["induction-heads"]
  places = []
  for example in task.drawn(tokenizer, "heldout"):
    document = symbols(example)
    first, last = np.flatnonzero(document == 15)
    assert last == 19
    assert document[20] == document[first + 1] != 15
    assert example.sources.tolist() == [first + 1]
    places.append(first)
  # The token may stand anywhere but where its follower would be its own repetition.
  counts = np.bincount(places)
  assert len(counts) == 18
  assert counts.min() > 0.5 * 1024 / 18


def test_multi_query_recall_asks_for_each_key_once_and_answers_with_its_value():
  task, tokenizer = TASKS["multi-query-recall"]
  for example in task.drawn(tokenizer, "heldout"):
    document = symbols(example)
    keys, values = document[0:10:2], document[1:10:2]
    assert len(set(keys)) == len(set(values)) == 5
    assert ((keys >= 1) & (keys < 16)).all()
    assert ((values >= 16) & (values < 32)).all()
    pairs = dict(zip(keys, values, strict=True))
    asked = document[example.answers - 1]
    assert sorted(asked) == sorted(keys)
    assert [pairs[key] for key in asked] == document[example.answers].tolist()
    assert (example.answers % 2 == 1).all()


def test_gaps_of_multi_query_recall_follow_the_published_power_law():
  task = recall.MultiQueryRecall(length=24, pairs=3, symbols=64, power=0.01)
  drawn = task.draw(tokenizers.Symbols(64), np.random.default_rng(0), 20_000)
  # Of the first pair, whose gap is drawn first; its answer stands at 6 + 2 gap + 1.
  gaps = [(e.answers[e.sources == 1][0] - 7) // 2 for e in drawn]
  weights = 0.01 * np.arange(1, 10) ** (0.01 - 1)
  expected = weights / weights.sum()
  found = np.bincount(gaps, minlength=9) / len(gaps)
  assert np.abs(found - expected).max() < 5 * np.sqrt(0.25 / len(gaps))


def test_a_phone_book_is_asked_for_an_entry_that_was_not_shown():
  task, tokenizer = TASKS["phonebook"]
  for example in task.drawn(tokenizer, "heldout"):
    book, _, question = tokenizer.decode(example.tokens).partition("\n\n")
    entries = [line.split(": ") for line in book.splitlines()]
    assert len(entries) == len({name for name, _ in entries}) == 6
    assert all(re.fullmatch(r"\d{10}", number) for _, number in entries)
    *shown, asked = [line.split(": ") for line in question.splitlines()]
    assert len(shown) == 2
    assert all(line in entries for line in [*shown, asked])
    assert asked not in shown
    answer = tokenizer.decode(example.tokens[example.answers])
    assert answer == " " + dict(entries)[asked[0]]


def test_a_needle_lies_at_its_depth():
  tokenizer = BYTES
  for depth in (0.0, 0.5, 1.0):
    task = recall_text.Needle(length=200, depth=depth)
    for example in task.drawn(tokenizer, "heldout"):
      text = tokenizer.decode(example.tokens)
      before, key, after = re.fullmatch(
        r"There is .* there\.\n(.*)\nThe pass key is (\d{5})\. Remember it\. \2 is the pass key\.\n"
        r"(.*)\nWhat is the pass key\? The pass key is \2",
        text,
        re.DOTALL,
      ).groups()
      assert len(before) == depth * 200
      assert len(before) + len(after) == 200
      assert tokenizer.decode(example.tokens[example.answers]) == f" {key}"
  depths = {e.sources[0] for e in TASKS["needle"][0].drawn(tokenizer, "heldout")}
  assert len(depths) > 100


def test_symbols_can_be_written_as_bytes_to_mix_with_text():
  task = recall.SelectiveCopying(length=8, data_tokens=2)
  as_symbols = next(task.drawn(tokenizers.Symbols(16), "train"))
  as_bytes = next(task.drawn(BYTES, "train"))
  numbers = [int(n) for n in tokenizers.Symbols(16).decode(as_symbols.tokens).split()]
  assert BYTES.decode(as_bytes.tokens) == "".join(chr(ord("0") + n) for n in numbers)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: recall.SelectiveCopying(length=4), "data_tokens=16 among length=4"),
    (lambda: recall.InductionHeads(length=2), "give at least 3 of each"),
    (lambda: recall.MultiQueryRecall(length=64, pairs=17), "1 to 16, a quarter"),
    (lambda: recall.MultiQueryRecall(pairs=4, symbols=9), "more than 9 symbols, not symbols=9"),
    (lambda: recall_text.Phonebook(length=2), "there must be more entries than shots"),
    (lambda: recall_text.Needle(depth=1.5), r"the depth is in \[0, 1\]"),
    (lambda: recall.InductionHeads(examples=0), "examples=0 must be at least 1"),
    (
      lambda: next(recall.InductionHeads().drawn(tokenizers.Symbols(15), "train")),
      r"has 16 symbols, the tokenizer is Symbols\(count=15\).*count=16 or more",
    ),
    (
      lambda: next(recall.MultiQueryRecall().drawn(BYTES, "train")),
      "Bytes for up to 208 symbols",
    ),
    (
      lambda: next(recall.InductionHeads().drawn(SYMBOLS, "all")),
      "split='all' does not exist in induction-heads; there are train, heldout",
    ),
  ],
)
def test_impossible_tasks_are_named(make, message):
  with pytest.raises(CorpusError, match=message):
    make()


def test_symbols_come_back_as_numbers(tmp_path):
  tokenizer = tokenizers.Symbols(16)
  assert tokenizer.encode("0 15 3") == [3, 18, 6]
  assert tokenizer.encode("16 x -1") == [2, 2, 2]
  assert tokenizer.decode([0, 3, 18, 2, 6, 1, 5]) == "0 15 3"
  assert tokenizer.byte_lengths().tolist() == [0, 0, 0] + [1] * 16
  tokenizers.save(tokenizer, tmp_path)
  assert tokenizers.load(tmp_path) == tokenizer
