"""RULER's tasks: a solver that reads the text alone finds the answers, and they lie where told."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest

from data import corpora, dataset, tokenizers, word_lists
from data.corpora import CorpusError
from data.haystacks import NOISE, RowText, Text, sentences
from data.long_text import Suite
from data.ruler import Needles, Variables, inserted
from data.ruler_words import CommonWords, FrequentWords

BYTES = tokenizers.Bytes()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  """A haystack of files, with code among the prose."""
  folder = tmp_path_factory.mktemp("texts")
  prose = "".join(f"Sentence {n} of a text tells little. Is it so? Yes!\n" for n in range(300))
  (folder / "one.txt").write_text(prose)
  (folder / "two.txt").write_text(" ".join(f"name_{n} = {n}" for n in range(500)))
  return Text(files=str(folder / "*.txt"))


def tasks(text):
  return {
    "single_1": Needles(),
    "single_2": Needles(haystack=text),
    "single_3": Needles(haystack=text, value="uuids"),
    "multikey_1": Needles(haystack=text, keys=4),
    "multikey_2": Needles(distractors=True),
    "multikey_3": Needles(distractors=True, key="uuids", value="uuids"),
    "multivalue": Needles(haystack=text, values=4),
    "multiquery": Needles(haystack=text, queries=4),
    "words": Needles(haystack=text, value="words", keys=5, values=2, queries=3),
    "variables": Variables(),
    "chains": Variables(haystack=text, chains=3, hops=2, shots=0),
    "common": CommonWords(),
    "frequent": FrequentWords(),
  }


def solved(prompt):
  """The answers, found in the text of a prompt alone."""
  question = re.split("Question: ", prompt)[-1]
  own = prompt.split("\n\n")[-1]
  if "secret" in question:
    asked = re.search(r" of (.*)\?\n", question)[1].replace(" and ", ", ").split(", ")
    told = re.findall(r"A secret \w+ of (\S+) is (\S+)\.", own)
    return Counter(secret for key, secret in told if key in asked)
  if "value" in question:
    [value] = re.findall(r"have the value (\d+)\?", question)
    known = {value}
    for name, source in re.findall(r"VAR ([A-Z]+) = (?:VAR )?(\w+)\.", own):
      if source in known:
        known.add(name)
    return Counter(known - {value})
  if "coded" in question:
    context = own.partition("\n")[2].partition("\nQuestion")[0]
    return Counter(w for w, _ in Counter(re.findall("[a-z]{6}", context)).most_common(3))
  context = own.partition("\n")[2].partition("\nQuestion")[0]
  counts = Counter(re.findall(r"\d+\. (\S+)", context))
  return Counter(word for word, _ in counts.most_common(10))


@pytest.mark.parametrize("length", [2048, 5000, 16384])
def test_a_solver_of_the_text_finds_every_answer_within_the_context(text, length):
  for name, task in tasks(text).items():
    if name == "common" and length < 16384:
      task = dataclasses.replace(task, common_times=6, other_times=1, shots=0)
    task = dataclasses.replace(task, length=length, heldout_examples=3)
    for example in task.drawn(BYTES, "heldout"):
      place = example.answers[0]
      prompt = BYTES.decode(example.tokens[:place])
      answer = BYTES.decode(example.tokens[place:])
      texts = [reference.text for reference in example.references]
      assert solved(prompt) == Counter(texts), name
      # All is inside the context, BOS and the room of the answer too, and fills it.
      assert example.room >= max(task.room, len(example.answers) + 1)
      assert length - 400 < 1 + place + example.room <= length
      assert len(example.tokens) <= length
      # RULER's match of the true answer, and the exact place of each reference.
      assert all(one in answer for one in texts)
      for reference in example.references:
        said = BYTES.decode(example.tokens[reference.source :][: len(reference.text) + 1])
        assert said[1:] == reference.text, name
      repeated = example.tokens[example.sources]
      if len(texts) == 1:
        assert (repeated == example.tokens[example.answers]).all()


def test_examples_follow_from_the_seed_and_differ(text):
  task = Needles(haystack=text, length=2048, heldout_examples=4)
  first, again = ([e.tokens.tolist() for e in task.drawn(BYTES, "heldout")] for _ in range(2))
  assert first == again
  other = [e.tokens.tolist() for e in dataclasses.replace(task, seed=1).drawn(BYTES, "heldout")]
  assert len({tuple(tokens) for tokens in first + other}) == 8
  validation = [e.tokens.tolist() for e in task.drawn(BYTES, "validation")]
  assert not any(tokens in first for tokens in validation)


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.8, 1.0])
def test_a_needle_lies_at_its_depth_to_half_a_sentence(text, depth):
  for haystack, unit in ((text, 240), (Needles().haystack, len(NOISE) + 1)):
    task = Needles(haystack=haystack, length=8192, depth=depth, keys=2, heldout_examples=4)
    for example in task.drawn(BYTES, "heldout"):
      [reference] = example.references
      prompt = BYTES.decode(example.tokens[: example.answers[0]])
      begin = prompt.index("\n") + 1
      context = prompt[begin : prompt.index("\nQuestion")]
      # Where its sentence begins, without it, the other needle and the text around.
      start = prompt.rindex("A secret", 0, reference.source) - begin
      hay = len(context) - sum(len(s) + 1 for s in re.findall(r"A secret [^.]*\.", context))
      before = start - sum(len(s) + 1 for s in re.findall(r"A secret [^.]*\.", context[:start]))
      assert abs(before - depth * hay) <= unit / 2 + 2


def test_depths_are_drawn_over_the_whole_context():
  task = Needles(length=4096, heldout_examples=60)
  depths = [e.references[0].source / e.answers[0] for e in task.drawn(BYTES, "heldout")]
  assert min(depths) < 0.15
  assert max(depths) > 0.85
  assert len({round(depth, 2) for depth in depths}) > 20


def test_statements_of_a_chain_keep_their_order_and_hops_are_needed():
  task = Variables(chains=2, length=4096, shots=0, heldout_examples=5)
  for example in task.drawn(BYTES, "heldout"):
    prompt = BYTES.decode(example.tokens[: example.answers[0]])
    [value] = re.findall(r"have the value (\d+)\?", prompt)
    direct = re.findall(rf"VAR (\w+) = {value}\.", prompt)
    assert direct == [example.references[0].text]
    assert len(example.references) == 5
    assert [r.source for r in example.references] == sorted(r.source for r in example.references)


def test_words_come_as_often_as_ruler_says():
  [example] = CommonWords(length=32768, heldout_examples=1).drawn(BYTES, "heldout")
  prompt = BYTES.decode(example.tokens[: example.answers[0]]).split("\n\n")[-1]
  counts = Counter(Counter(re.findall(r"\d+\. (\S+)", prompt)).values())
  assert counts[30] == 10
  assert set(counts) == {30, 3}
  [example] = FrequentWords(length=8192, heldout_examples=1).drawn(BYTES, "heldout")
  prompt = BYTES.decode(example.tokens[: example.answers[0]])
  listed = prompt.partition("\n")[2].partition("\nQuestion")[0].split(" ")
  counts = sorted(Counter(listed).values(), reverse=True)
  assert Counter(listed).most_common(1)[0][0] == "..."
  # A quarter, a ninth and a sixteenth of the first.
  assert [round(counts[0] / count) for count in counts[1:4]] == [4, 9, 16]


@pytest.mark.parametrize("alpha", [1.05, 1.5, 2.0, 3.5])
def test_the_three_frequent_words_are_apart_at_every_length(alpha):
  task = FrequentWords(alpha=alpha)
  for words in range(task.least, 2 * task.least):
    assert len(set(task._counts(words, 5)[1:])) == 4


def test_no_word_is_a_part_of_another():
  for own, ends in ((word_lists._FIRST, str.endswith), (word_lists._SECOND, str.startswith)):
    assert len(set(own)) == len(own)
    assert not [(a, b) for a in own for b in own if a != b and ends(b, a)]
  alone = word_lists._alone()
  assert len(alone) > 300
  assert not [(a, b) for a in alone for b in alone if a != b and a in b]


def test_texts_are_inserted_in_the_nearest_gap():
  units = ["aaa", "bbb", "ccc", "ddd"]
  found, places = inserted(units, ["X", "Y", "Z"], np.array([1.0, 0.3, 0.0]), " ")
  assert found == "Z aaa Y bbb ccc ddd X"
  assert [found[place] for place in places] == ["X", "Y", "Z"]
  assert sentences("One. Two?  Three\nfour") == ["One.", "Two?", "Three four"]
  assert max(len(s.split()) for s in sentences("word " * 100)) == 40


def test_a_suite_draws_from_each_task_in_turn(text):
  suite = Suite(
    tasks=(Needles(haystack=text), Variables()), names=("n", "v"), length=2048, heldout_examples=6
  )
  prompts = [BYTES.decode(example.tokens) for example in suite.drawn(BYTES, "heldout")]
  assert ["secret" in prompt for prompt in prompts] == [True, False] * 3
  with pytest.raises(CorpusError, match="each a name of its own"):
    dataclasses.replace(suite, names=("n", "n"))


def test_the_text_of_a_run_is_its_held_out_documents_or_else_rows(tmp_path):
  folder = tmp_path / "texts"
  folder.mkdir()
  for n in range(40):
    (folder / f"{n}.txt").write_text(f"File {n} has one sentence. It has another, too. é!")
  corpus = corpora.TextFiles(f"{folder}/*.txt", heldout_fraction=0.3)
  data = dataset.TextDataset(corpus, BYTES, 64, "heldout", str(tmp_path / "cache"))
  rng = np.random.default_rng(0)
  own = Text().of_dataset(data)
  told = {n for n in range(40) if f"File {n} has one sentence." in own.units(rng, 60)}
  assert 0 < len(told) < 40
  # A data set whose documents Python does not read is read from its rows.
  rows = dataclasses.replace(own, corpus=RowText(data))
  assert {n for n in range(40) if f"File {n} has one sentence." in rows.units(rng, 200)} <= told
  assert any("é!" in unit for unit in rows.units(rng, 200))
  assert RowText(data).describe() == data.source()
  mixed = dataset.Mixture([data])
  assert Text().of_dataset(mixed) == own
  named = Text(files="x.txt")
  assert named.of_dataset(data) == named


def test_impossible_tasks_are_told_in_one_line():
  with pytest.raises(CorpusError, match=r"more than length=300\. Give a longer"):
    next(Needles(length=300).drawn(BYTES, "heldout"))
  with pytest.raises(CorpusError, match="41 needles: there can be 40"):
    Needles(keys=41)
  with pytest.raises(CorpusError, match="only one secret can have a depth"):
    Needles(queries=2, depth=0.5)
  with pytest.raises(CorpusError, match="the common ones must come more often"):
    CommonWords(common_times=2, other_times=2)
  with pytest.raises(CorpusError, match=r"no text to hide anything in.*HAYSTACK_FILES"):
    next(Needles(haystack=Text()).drawn(BYTES, "heldout"))
  with pytest.raises(CorpusError, match="no text that can hide anything"):
    Text().of_dataset(object())
