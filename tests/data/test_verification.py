"""Training never uses rows that changed on disk after they were written."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from data import corpora, dataset, manifest, packing, preparation, rows, tokenizers, verification

LENGTH = 64


@pytest.fixture
def text(tmp_path, monkeypatch):
  """A dataset whose rows are made without another process, and its directory."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  (tmp_path / "a.txt").write_text("some text in a file\n" * 20_000)
  corpus = corpora.TextFiles(str(tmp_path / "a.txt"))
  made = dataset.TextDataset(
    corpus, tokenizers.Bytes(), LENGTH, "all", cache_dir=str(tmp_path / "cache")
  )

  def prepare(datasets, progress):
    for one in datasets:
      if not one.is_prepared():
        write(one)

  monkeypatch.setattr(preparation, "prepare", prepare)
  return made


def write(made):
  made.cache_path.mkdir(parents=True)
  packer = packing.Packer(made.vocabulary, LENGTH)
  writer = rows.RowWriter(made.cache_path, made.vocabulary, LENGTH)
  for document in made.corpus.documents("all"):
    for block in packer.add(np.asarray(made.vocabulary.encode(document.decode())), len(document)):
      writer.write(*block)
  writer.write(*packer.finish())
  writer.finish(made.source(), packer.counts)


def flip(path, place, *, keep_time=False):
  times = path.stat()
  content = bytearray(path.read_bytes())
  content[place] ^= 1
  path.write_bytes(content)
  if keep_time:
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
  else:
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize("name", [rows.TOKENS, rows.SEGMENT_IDS, rows.ROW_BYTES])
@pytest.mark.parametrize("opened_before", [False, True])
def test_a_flipped_bit_is_found_whether_the_rows_were_opened_before_or_not(
  text, name, opened_before
):
  if opened_before:
    text.rows()
  else:
    write(text)
  flip(text.cache_path / name, 1000)
  with pytest.raises(
    manifest.RowFileError, match=rf"{name} has sha256 .*Remove the directory"
  ) as caught:
    text.rows()
  assert len(str(caught.value)) < 700


def test_a_bit_that_a_disk_flips_is_found_in_a_sample(text):
  text.rows()
  flip(text.cache_path / rows.TOKENS, 40_000, keep_time=True)
  with pytest.raises(manifest.RowFileError, match="although its size and time are the same"):
    text.rows()


def test_all_is_read_once_and_then_a_sample(text, monkeypatch):
  text.rows()
  read = []
  monkeypatch.setattr(manifest.ArrayFile, "verify", lambda self, path: read.append(path.name))
  text.rows()
  assert read == []
  # A copy of the directory has other times.
  os.utime(text.cache_path / rows.TOKENS)
  text.rows()
  text.rows()
  assert read == [rows.TOKENS]


@pytest.mark.parametrize(
  "content", ["", "[]", '{"tokens.bin": 5}', '{"tokens.bin": {}}', "[" * 90_000]
)
def test_what_is_remembered_may_be_lost_or_odd(text, content):
  text.rows()
  (text.cache_path / verification.VERIFIED_FILE).write_text(content)
  text.rows()
  assert json.loads((text.cache_path / verification.VERIFIED_FILE).read_text())
  assert [p for p in text.cache_path.iterdir() if p.name.startswith(".")] == []


def refuse_writing_in(monkeypatch, folder):
  """Makes writing fail as on a read-only disk, also for root."""
  make = verification.tempfile.mkstemp

  def mkstemp(*, dir, prefix):
    if str(dir).startswith(str(folder)):
      raise OSError(30, "Read-only file system")
    return make(dir=dir, prefix=prefix)

  monkeypatch.setattr(verification.tempfile, "mkstemp", mkstemp)


def count_reads(monkeypatch):
  read, verify = [], manifest.ArrayFile.verify

  def counted(self, path):
    read.append(path.name)
    verify(self, path)

  monkeypatch.setattr(manifest.ArrayFile, "verify", counted)
  return read


def test_rows_in_a_directory_that_may_only_be_read_are_read_through_once(
  text, monkeypatch, tmp_path
):
  write(text)

  refuse_writing_in(monkeypatch, text.cache_path)
  read = count_reads(monkeypatch)
  text.rows()
  text.rows()
  # It is remembered in the user's cache folder.
  assert len(read) == 3
  assert len(list((tmp_path / "home" / "griffin-jax" / "verified").iterdir())) == 1
  monkeypatch.undo()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  flip(text.cache_path / rows.TOKENS, 1000)
  with pytest.raises(manifest.RowFileError, match="has sha256"):
    verification.verify(rows.RowFiles(text.cache_path))


def test_where_nothing_can_be_remembered_a_sample_is_read_and_a_line_says_so(
  text, monkeypatch, capsys
):
  write(text)
  refuse_writing_in(monkeypatch, "/")
  read = count_reads(monkeypatch)
  text.rows()
  assert read == []
  (line,) = capsys.readouterr().err.splitlines()
  assert "only a sample of the rows was checked" in line
  assert "XDG_CACHE_HOME" in line


def test_a_line_says_that_much_is_read(text, monkeypatch, capsys):
  write(text)
  monkeypatch.setattr(verification, "_TOLD_BYTES", 1000)
  text.rows()
  text.rows()
  assert capsys.readouterr().err.count(f"GB of rows in {text.cache_path} once\n") == 1


def test_ids_out_of_range_are_found_in_a_sample_although_the_sums_agree(text):
  write(text)
  file = text.cache_path / rows.TOKENS
  values = np.fromfile(file, "<u2")
  values[:LENGTH] = 60_000
  values.tofile(file)
  listed = json.loads((text.cache_path / "manifest.json").read_text())
  listed["files"][rows.TOKENS]["sha256"] = manifest.sha256_of(file)
  (text.cache_path / "manifest.json").write_text(json.dumps(listed))
  with pytest.raises(manifest.RowFileError, match="row 0: the id 60000 is not in the vocabulary"):
    text.rows()
