"""A preparation that stops prints one line, and leaves no incomplete files."""

from __future__ import annotations

import errno
import os
import time

import numpy as np
import pytest

from data import (
  corpora,
  dataset,
  manifest,
  preparation,
  prepare,
  rows,
  shard_packing,
  tasks,
  tokenizers,
)
from data.preparation import PreparationError


@pytest.fixture
def text(tmp_path, monkeypatch):
  """A dataset that is tokenized without TensorFlow, in this process."""
  (tmp_path / "a.txt").write_text("some text\n" * 100)
  corpus = corpora.TextFiles(str(tmp_path / "a.txt"))

  def examples(corpus, tokenizer, split):
    for document in corpus.documents(split):
      ids = np.asarray(tokenizer.encode(document.decode()), np.int32)
      yield tasks.Example(ids, len(document), False)

  monkeypatch.setattr(tasks, "examples", examples)
  return dataset.TextDataset(
    corpus, tokenizers.Bytes(), 16, "all", cache_dir=str(tmp_path / "cache")
  )


def ignore(event):
  pass


def left(text):
  return sorted(p.name for p in text.cache_path.parent.iterdir() if p.is_dir())


def test_a_full_disk_is_one_line_and_leaves_nothing(text, monkeypatch):
  def full(self, *arrays):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(rows.RowWriter, "write", full)
  with pytest.raises(PreparationError, match=r"cache: No space left on device\. .*cache_dir"):
    prepare.prepare(text, ignore)
  assert left(text) == []
  monkeypatch.undo()


def test_a_cache_that_is_a_file_or_cannot_be_made_is_one_line(text, tmp_path):
  (tmp_path / "cache").write_text("")
  with pytest.raises(PreparationError, match=r"cannot be written to .*cache: .*--gin") as caught:
    prepare.prepare(text, ignore)
  assert "\n" not in str(caught.value)


def test_a_directory_in_the_place_of_the_rows_is_not_overwritten(text):
  text.cache_path.mkdir(parents=True)
  (text.cache_path / "mine").write_text("")
  with pytest.raises(PreparationError, match="cannot be written to"):
    prepare.prepare(text, ignore)
  assert left(text) == [text.cache_path.name]


def test_a_corpus_that_changes_while_it_is_read_is_noticed(text, tmp_path, monkeypatch):
  packed = prepare._pack

  def slowly(*arguments):
    packed(*arguments)
    (tmp_path / "a.txt").write_text("more\n" * 100)

  monkeypatch.setattr(prepare, "_pack", slowly)
  with pytest.raises(corpora.CorpusError, match="a file changed while it was read"):
    prepare.prepare(text, ignore)
  assert left(text) == []


def test_what_others_are_making_stays_and_what_was_left_goes(text):
  parent, name = text.cache_path.parent, text.cache_path.name
  parent.mkdir()
  ours = parent / f".{name}.{shard_packing.machine()}.7.partial"
  theirs, old, long = (parent / f".{name}.host-{n}.7.partial" for n in range(3))
  for folder in (ours, theirs, old, long):
    folder.mkdir()
    (folder / rows.TOKENS).write_text("")
  # Who writes into a file for days changes the file's time alone.
  for path in (old / rows.TOKENS, old, long):
    os.utime(path, (time.time() - 1e6,) * 2)
  prepare.prepare(text, ignore)
  assert left(text) == sorted([name, theirs.name, long.name])


def test_what_cannot_be_read_is_not_blamed_on_the_cache(text, monkeypatch):
  def broken(*arguments):
    raise OSError(errno.EIO, os.strerror(errno.EIO), "a.txt")
    yield

  monkeypatch.setattr(tasks, "examples", broken)
  with pytest.raises(corpora.CorpusError, match=r"cannot be read: a\.txt: Input/output") as caught:
    prepare.prepare(text, ignore)
  assert "cache" not in str(caught.value)
  assert left(text) == []


def test_rows_that_were_just_written_are_not_read_through(text, monkeypatch):
  prepare.prepare(text, ignore)
  monkeypatch.setattr(manifest.ArrayFile, "verify", None)
  assert len(text.rows())


def test_a_dataset_that_cannot_be_pickled_is_one_line(text):
  class Local(tokenizers.Bytes):
    pass

  odd = dataset.TextDataset(text.corpus, Local(), 16, "all", cache_dir=text.cache_dir)
  with pytest.raises(
    PreparationError, match=r"cannot be pickled for .*at the top level of a module"
  ):
    preparation.prepare([odd], ignore)
