"""Compressed files and tables have the documents of the same text in plain files."""

import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from data import corpora, dataset, prepare, rows, shard_plan
from data.table_corpora import Parquet, SavedDataset
from data.tokenizers import Bytes
from tests.data.test_shard_packing import documents, in_this_process

TEXTS = ["first é", "second\r\nline", "", "😀 fourth", *(f"text {n}" * 9 for n in range(60))]


def zstandard(content):
  sink = pyarrow.BufferOutputStream()
  with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
    stream.write(content)
  return sink.getvalue().to_pybytes()


PACKERS = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard}


@pytest.mark.parametrize("ending", PACKERS)
def test_compressed_text_is_the_text(tmp_path, ending):
  lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
  content = b"\xef\xbb\xbf" + lines.encode()
  (tmp_path / f"a.jsonl{ending}").write_bytes(PACKERS[ending](content))
  (tmp_path / f"a.txt{ending}").write_bytes(PACKERS[ending](b"\xef\xbb\xbfone<s>two<s>"))
  expected = [text.encode() for text in TEXTS]
  corpus = corpora.JsonLines(str(tmp_path / f"*.jsonl{ending}"))
  assert list(corpus.undivided()) == expected
  assert [text.raw for part in corpus.parts(10) for text in corpus.texts(part)] == expected
  assert corpus.total_bytes() > (tmp_path / f"a.jsonl{ending}").stat().st_size
  texts = corpora.TextFiles(str(tmp_path / f"*.txt{ending}"), separator="<s>")
  assert list(texts.undivided()) == [b"one", b"two"]
  assert [text.raw for part in texts.parts(2) for text in texts.texts(part)] == [b"one", b"two"]
  whole = corpora.TextFiles(str(tmp_path / f"*.txt{ending}"))
  assert [text.raw for part in whole.parts(2) for text in whole.texts(part)] == [b"one<s>two<s>"]


def test_a_wrong_line_of_a_compressed_file_is_named(tmp_path):
  (tmp_path / "a.gz").write_bytes(gzip.compress(b'{"text": "x"}\n\n{"text": 5}\n'))
  corpus = corpora.JsonLines(str(tmp_path / "a.gz"))
  with pytest.raises(corpora.CorpusError, match=r"a\.gz:3: 'text' is a number"):
    list(corpus.undivided())


def parquet(folder):
  table = pyarrow.table({"n": range(len(TEXTS)), "text": TEXTS})
  pyarrow.parquet.write_table(table.slice(0, 40), folder / "a.parquet", row_group_size=7)
  pyarrow.parquet.write_table(table.slice(40), folder / "b.parquet")
  return Parquet(str(folder / "*.parquet"))


def saved(folder):
  import datasets

  datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(len(TEXTS)))}).save_to_disk(
    folder / "train", num_shards=3
  )
  return SavedDataset(str(folder / "train"))


@pytest.mark.parametrize("make", [parquet, saved])
def test_a_table_is_packed_as_json_lines_of_its_texts(tmp_path, make, monkeypatch):
  monkeypatch.setattr("data.shard_workers.pack_all", in_this_process)
  (tmp_path / "table").mkdir()
  table = make(tmp_path / "table")
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
  found = []
  for corpus in (table, corpora.JsonLines(str(tmp_path / "a.jsonl"))):
    for split in ("train", "heldout", "all"):
      text = dataset.TextDataset(
        corpus, Bytes(), 16, split, str(tmp_path / "cache"), shard_bytes=500
      )
      assert len(shard_plan.tasks(text)) > 1
      prepare.prepare(text, lambda event: None)
      opened = rows.RowFiles(text.cache_path, verify=True)
      found.append((documents(opened), opened.counts.documents, opened.counts.empty_documents))
  assert found[:3] == found[3:]
  if make is parquet:
    table.check()


def test_null_is_an_empty_document_and_other_types_are_named(tmp_path):
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "b"], "n": [1, 2, 3]}), path)
  assert list(Parquet(str(path)).undivided()) == [b"a", b"", b"b"]
  with pytest.raises(corpora.CorpusError, match=r"a\.parquet, row 0: 'n' is a number.*COLUMN"):
    list(Parquet(str(path), "n").undivided())
  with pytest.raises(corpora.CorpusError, match=r"no column 'body', only text, n\. Set .*COLUMN"):
    Parquet(str(path), "body").check()
  whole = path.read_bytes()
  path.write_bytes(whole[:4] + b"\xff" * 40 + whole[44:])  # the first page's header
  with pytest.raises(corpora.CorpusError, match=r"a\.parquet, after row 0: .* Replace the file"):
    list(Parquet(str(path)).undivided())
  path.write_bytes(whole[:-20])
  with pytest.raises(corpora.CorpusError, match=r"a\.parquet is not a readable Parquet file"):
    Parquet(str(path)).check()


def test_what_is_no_saved_data_set_is_one_line(tmp_path):
  (tmp_path / "x" / "train").mkdir(parents=True)
  with pytest.raises(corpora.CorpusError, match=r"no readable state\.json.*Correct the path"):
    list(SavedDataset(str(tmp_path / "x")).undivided())
  state = {"_data_files": [{"filename": "../a.arrow"}], "_indices_data_files": None}
  (tmp_path / "x" / "train" / "state.json").write_text(json.dumps(state))
  with pytest.raises(corpora.CorpusError, match=r"Give one of its splits: .*x/train\."):
    list(SavedDataset(str(tmp_path / "x")).undivided())
  with pytest.raises(corpora.CorpusError, match=r"names '\.\./a\.arrow', which is not in"):
    list(SavedDataset(str(tmp_path / "x" / "train")).undivided())
  (tmp_path / "x" / "train" / "state.json").write_text('{"_data_files": [{"filename": 3}]}')
  with pytest.raises(corpora.CorpusError, match=r"no readable state\.json"):
    list(SavedDataset(str(tmp_path / "x" / "train")).undivided())
