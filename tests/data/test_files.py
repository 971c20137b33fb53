"""Files that are not text are refused by name, and text is read to its last byte."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from data import files
from data.corpora import CorpusError, JsonLines, TextFiles
from data.instructions import GemmaTurns, Instructions

TEXT = "Some text of several words, to be compressed.\n" * 20


def _zip():
  made = io.BytesIO()
  with zipfile.ZipFile(made, "w") as archive:
    archive.writestr("a.txt", TEXT)
  return made.getvalue()


def _tar():
  made = io.BytesIO()
  with tarfile.open(fileobj=made, mode="w") as archive:
    archive.addfile(tarfile.TarInfo("a.txt"))
  return made.getvalue()


def _npy():
  made = io.BytesIO()
  np.save(made, np.arange(10))
  return made.getvalue()


NO_TEXT = {
  "tar in gzip": (gzip.compress(_tar()), r"is tar, not text\. Unpack it"),
  "cut gzip": (gzip.compress(TEXT.encode())[:40], "is damaged or cut off"),
  "zip": (_zip(), "is a ZIP archive"),
  "tar": (_tar(), "is tar, not text"),
  "bzip2": (bz2.compress(TEXT.encode()), "is bzip2"),
  "PDF in xz": (lzma.compress(b"%PDF-1.7\n" + bytes(100)), "is PDF"),
  "damaged xz": (lzma.compress(TEXT.encode())[:20] + bytes(90), "is damaged or cut off"),
  "damaged zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "cannot be read"),
  "parquet": (b"PAR1" + bytes(range(256)) + b"PAR1", r"is Parquet, .*Export it as text"),
  "pdf": (b"%PDF-1.7\n" + bytes(100), "is PDF"),
  "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is an image"),
  "pickle": (pickle.dumps([TEXT]), "is a pickle"),
  "npy": (_npy(), "is a NumPy array"),
  "utf-16": (TEXT.encode("utf-16"), r"is UTF-16, not UTF-8\. Convert it: iconv -f UTF-16"),
  "utf-32": (TEXT.encode("utf-32"), "is UTF-32"),
  "utf-16 without a mark": (
    TEXT.encode("utf-16-le"),
    "is UTF-16LE without a mark, .*iconv -f UTF-16LE",
  ),
  "big-endian utf-16": (TEXT.encode("utf-16-be"), "is UTF-16BE without a mark"),
  "a hole": (bytes(5000), "not UTF-8 text: 100% of its first"),
  "latin-1": (
    "déjà vu à côté, été\n".encode("latin-1") * 20,
    r"not UTF-8 text.*\(at most 2% may be\)",
  ),
  "noise": (np.random.default_rng(0).bytes(5000), "not UTF-8 text"),
}


@pytest.mark.parametrize("name", NO_TEXT)
@pytest.mark.parametrize("kind", [TextFiles, JsonLines, Instructions])
def test_what_is_no_text_is_refused_by_name(tmp_path, name, kind):
  content, message = NO_TEXT[name]
  (tmp_path / "a.txt").write_bytes(content)
  corpus = kind(str(tmp_path / "a.txt"))
  read = corpus.examples if kind is Instructions else corpus.documents
  with pytest.raises(CorpusError, match=rf"a\.txt {message}|a\.txt is {message}") as caught:
    list(read("all"))
  assert len(str(caught.value)) < 500


@pytest.mark.parametrize("separator", [None, "<|e|>"])
def test_a_few_invalid_bytes_and_a_byte_order_mark_do_no_harm(tmp_path, separator):
  content = TEXT.encode() + b"damaged \xff\xc3 here, and a nul \x00\n"
  (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + content)
  (tmp_path / "b.txt").write_bytes(b"\xff\xc3")
  corpus = TextFiles(str(tmp_path / "*.txt"), separator=separator)
  assert list(corpus.documents("all")) == [content, b"\xff\xc3"]


def test_json_lines_may_begin_with_a_byte_order_mark(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\n')
  assert list(JsonLines(str(tmp_path / "a.jsonl")).documents("all")) == [b"x"]


def test_a_path_with_brackets_is_a_path(tmp_path):
  folder = tmp_path / "notes [2024]"
  folder.mkdir()
  (folder / "a[1]?.txt").write_text("in brackets")
  (tmp_path / "b.txt").write_text("other")
  corpus = TextFiles([str(folder / "a[1]?.txt"), str(tmp_path / "*.txt")])
  assert list(corpus.documents("all")) == [b"other", b"in brackets"]


def test_a_circle_of_links_shows_no_file_twice(tmp_path):
  (tmp_path / "in/deep").mkdir(parents=True)
  (tmp_path / "in/deep/a.txt").write_text("a")
  (tmp_path / "in/deep/back").symlink_to(tmp_path / "in")
  (tmp_path / "again").symlink_to(tmp_path / "in/deep")
  found = files.matching_files(f"{tmp_path}/**/*.txt")
  assert found == [tmp_path / "again/a.txt"]


def test_what_is_no_file_is_told(tmp_path):
  (tmp_path / "folder").mkdir()
  (tmp_path / "link.txt").symlink_to(tmp_path / "nothing")
  os.mkfifo(tmp_path / "pipe.txt")
  cases = {
    "folder": "folder is a folder. Give the files in it",
    "link.txt": r"link\.txt is a broken link",
    "link*": r"link\.txt is a broken link",
    "pipe.txt": r"pipe\.txt is not a regular file",
    "pipe*": r"pipe\.txt is not a regular file",
    "none/*.txt": "no file matches",
    "fold*": "no file matches",
  }
  for pattern, message in cases.items():
    with pytest.raises(CorpusError, match=message):
      TextFiles(str(tmp_path / pattern)).describe()
  for value in ([], "", "a\0b"):
    with pytest.raises(CorpusError, match="files="):
      TextFiles(value).describe()


def test_a_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
  (tmp_path / "a.txt").write_text("x")

  def refuse(*arguments, **more):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(files.Path, "open", refuse)
  with pytest.raises(CorpusError, match=r"a\.txt cannot be read: Permission denied"):
    list(TextFiles(str(tmp_path / "a.txt")).documents("all"))


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("[" * 100_000, "nested too deep"),
    ('{"text": ' + '{"a":' * 5000 + "1" + "}" * 5001, "nested too deep"),
    ('{"text": ' + "9" * 5000 + "}", "not a JSON object"),
    ('"text"', "a string, not a JSON object"),
    ("null", "null, not"),
    ('{"text": {"a": []}}', "'text' is an object, not a string"),
    ("{" + ", ".join(f'"{"k" * 50}{n}": 1' for n in range(500)) + "}", "and 494 more"),
    ("{}", "only nothing"),
  ],
)
def test_an_odd_line_is_one_short_line_that_names_it(tmp_path, line, message):
  (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + line + "\n")
  with pytest.raises(CorpusError, match=rf"a\.jsonl:2: .*{message}") as caught:
    list(JsonLines(str(tmp_path / "a.jsonl")).documents("all"))
  assert len(str(caught.value)) < 500
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("role", [["user"], {"a": 1}, 5, None, "x" * 10_000])
def test_an_odd_role_is_told(tmp_path, role):
  file = tmp_path / "a.jsonl"
  file.write_text(json.dumps({"messages": [{"role": role, "content": "x"}]}))
  with pytest.raises(CorpusError, match=r"a\.jsonl:1: message 1 .* has the unknown role") as caught:
    list(Instructions(str(file), GemmaTurns()).examples("all"))
  assert len(str(caught.value)) < 500
