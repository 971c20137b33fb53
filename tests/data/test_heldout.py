"""Every corpus with some text has text to train on and text held out."""

from __future__ import annotations

import json

import pytest

from data import corpora, heldout
from data.corpora import CorpusError, JsonLines, TextFiles
from data.dataset import TextDataset
from data.instructions import Instructions
from data.tokenizers import Bytes


def split(corpus):
  return [list(corpus.documents(name)) for name in ("train", "heldout", "all")]


def lines(folder, count, text="line {} of some text"):
  file = folder / "lines.jsonl"
  file.write_text("".join(json.dumps({"text": text.format(n)}) + "\n" for n in range(count)))
  return str(file)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 17, 200])
@pytest.mark.parametrize("separator", [None, "<|e|>"])
def test_no_split_of_text_files_is_empty_and_nothing_is_lost(tmp_path, count, separator):
  for number in range(count):
    (tmp_path / f"{number:03}.txt").write_text(f"file {number}: é 文\n" * 40)
  corpus = TextFiles(str(tmp_path / "*.txt"), separator=separator)
  train, held_out, everything = split(corpus)
  assert b"".join(train)
  assert b"".join(held_out)
  assert sum(map(len, train + held_out)) == sum(map(len, everything))
  if count < 3:
    assert b"".join(train + held_out) == b"".join(everything)
    assert 0.02 < len(b"".join(held_out)) / len(b"".join(everything)) < 0.11
  for text in train + held_out:
    assert text.decode().endswith("\n")


def test_one_input_txt_is_cut_after_a_line(tmp_path):
  text = "".join(f"line {number}\n" for number in range(1000))
  (tmp_path / "input.txt").write_text(text)
  (train,), (held_out,), _ = split(TextFiles(str(tmp_path / "input.txt")))
  assert (train + held_out).decode() == text
  assert train.endswith(b"\n")
  assert 0.04 < len(held_out) / len(text) < 0.06


def test_a_text_without_lines_is_cut_before_a_character(tmp_path):
  text = "文😀é" * 500
  (tmp_path / "input.txt").write_text(text)
  (train,), (held_out,), _ = split(TextFiles(str(tmp_path / "input.txt")))
  assert train.decode() + held_out.decode() == text


@pytest.mark.parametrize("count", [1, 2, 3, 19, 300])
def test_no_split_of_json_lines_is_empty(tmp_path, count):
  train, held_out, everything = split(JsonLines(lines(tmp_path, count, "text {0} " * 30)))
  assert train
  assert held_out
  assert sum(map(len, train + held_out)) == sum(map(len, everything))


@pytest.mark.parametrize("count", [2, 3, 19, 300])
def test_no_split_of_instructions_is_empty_and_examples_stay_whole(tmp_path, count):
  file = tmp_path / "lines.jsonl"
  written = [{"prompt": f"{n}?", "response": "yes"} for n in range(count)]
  file.write_text("\n".join(map(json.dumps, written)))
  corpus = Instructions(str(file))
  train, held_out, everything = (list(corpus.examples(s)) for s in ("train", "heldout", "all"))
  assert train
  assert held_out
  assert sorted(train + held_out) == sorted(everything)


def test_a_corpus_that_a_hash_divides_is_divided_as_ever(tmp_path):
  corpus = JsonLines(lines(tmp_path, 400))
  train, held_out, _ = split(corpus)
  assert all(corpora.in_split(text, "train", 0.05) for text in train)
  assert all(corpora.in_split(text, "heldout", 0.05) for text in held_out)
  # Its description names the rows in the cache: they are found again.
  assert "heldout" not in corpus.describe()
  assert JsonLines(lines(tmp_path, 1)).describe()["heldout"] == "tail of text"


def test_the_rule_depends_on_the_text_alone(tmp_path):
  corpus = TextFiles(str(tmp_path / "*.txt"))
  (tmp_path / "a.txt").write_text("some text\n" * 100)
  first = split(corpus)
  heldout._found.clear()
  # Also in the order in which processes ask.
  assert [list(corpus.documents(name)) for name in ("heldout", "train")] == [first[1], first[0]]
  before = corpus.describe()
  for number in range(200):
    (tmp_path / f"b{number}.txt").write_text(f"another {number}")
  assert "heldout" in before
  assert "heldout" not in corpus.describe()


@pytest.mark.parametrize("text", ["abc", "x" * 63])
def test_too_little_text_is_one_error_that_says_what_to_do(tmp_path, text):
  (tmp_path / "a.txt").write_text(text)
  corpus = TextFiles(str(tmp_path / "a.txt"))
  for name in ("train", "heldout"):
    with pytest.raises(CorpusError, match=rf"{len(text)} bytes .*1 document: .*--gin.own/corpora"):
      list(corpus.documents(name))
  assert list(corpus.documents("all")) == [text.encode()]
  one = tmp_path / "one.jsonl"
  one.write_text('{"prompt": "a", "response": "b"}')
  with pytest.raises(CorpusError, match=r"1 document: .*own/instructions\.Instructions"):
    list(Instructions(str(one)).examples("train"))


def test_a_fraction_of_nothing_or_all_is_taken_at_its_word(tmp_path):
  (tmp_path / "a.txt").write_text("some text\n" * 100)
  pattern = str(tmp_path / "a.txt")
  assert [len(x) for x in split(TextFiles(pattern, heldout_fraction=0.0))] == [1, 0, 1]
  assert [len(x) for x in split(TextFiles(pattern, heldout_fraction=1.0))] == [0, 1, 1]


def test_a_tail_is_whole_documents_where_some_fit():
  assert heldout.tail_of([100] * 30, 0.1, corpus=None) == (27, 0)
  assert heldout.tail_of([1000, 60, 0], 0.1, corpus=None) == (1, 0)
  assert heldout.tail_of([1000, 0], 0.1, corpus=None) == (0, 900)
  assert heldout.tail_of([10, 10], 0.1, corpus=None) == (1, 0)


def test_a_tail_is_never_much_shorter_than_asked_for_where_there_is_more():
  assert heldout.tail_of([100_000, 5], 0.05, corpus=None) == (0, 95_005)
  assert heldout.tail_of([100, 100, 5, 0], 0.05, corpus=None) == (1, 89)
  assert heldout.tail_of([60] * 9 + [5], 0.05, corpus=None) == (8, 0)
  # Examples are not cut; the longest one stays where it is learnt from.
  assert heldout.tail_of([900, 100_000, 5], 0.05, cut=False, corpus=None) == (2, 0)
  assert heldout.tail_of([100_000, 6000, 5], 0.05, cut=False, corpus=None) == (1, 0)


@pytest.mark.parametrize("stories", [1, 2, 3])
def test_blanks_after_the_last_separator_are_no_held_out_text(tmp_path, stories):
  story = "Once there was a story.\n" * 40
  (tmp_path / "a.txt").write_text("\n\n<|endoftext|>\n\n".join([story] * stories + [""]))
  corpus = TextFiles(str(tmp_path / "a.txt"), separator="<|endoftext|>")
  train, held_out, everything = (b"".join(texts) for texts in split(corpus))
  assert 0.02 < len(held_out.strip()) / len(everything) < 0.11
  assert b"story" in train
  assert train + held_out == everything
  # Rows that were held out by the older rule have another name.
  assert corpus.describe()["heldout"] == "tail of text"


def test_the_rule_of_the_splits_does_not_name_rows_of_all_text(tmp_path):
  (tmp_path / "a.txt").write_text("some text\n" * 100)
  corpus = TextFiles(str(tmp_path / "a.txt"))
  sources = [TextDataset(corpus, Bytes(), 8, split=name).source() for name in ("train", "all")]
  assert [source.get("heldout") for source in sources] == ["tail", None]


@pytest.mark.parametrize(("split", "fraction"), [("heldout", 0.0), ("train", 1.0)])
def test_a_split_that_is_empty_by_intent_is_told_before_anything_is_prepared(
  tmp_path, split, fraction
):
  (tmp_path / "a.txt").write_text("some text\n" * 100)
  corpus = TextFiles(str(tmp_path / "a.txt"), heldout_fraction=fraction)
  text = TextDataset(corpus, Bytes(), 8, split=split, cache_dir=str(tmp_path / "cache"))
  message = r"--gin\.corpora\.TextFiles\.heldout_fraction=0\.05"
  with pytest.raises(CorpusError, match=message):
    text.rows()
  assert not (tmp_path / "cache").exists()
