"""Streams of Hugging Face's `datasets` from files have their rows."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from data import dataset, files, prepare, rows, shard_plan
from data.hub_corpora import HubDataset
from data.tokenizers import Bytes

TEXTS = ["first é", None, "", "😀 fourth", *(f"text {n} " * 9 for n in range(60))]
EXPECTED = [(text or "").encode() for text in TEXTS]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder with two Parquet files and the same rows as JSON lines."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "data").mkdir()
  table = pyarrow.table({"n": range(len(TEXTS)), "text": TEXTS})
  pyarrow.parquet.write_table(table.slice(0, 40), tmp_path / "data/train-0.parquet")
  pyarrow.parquet.write_table(table.slice(40), tmp_path / "data/train-1.parquet")
  lines = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS)
  (tmp_path / "lines.jsonl").write_text(lines)
  return tmp_path


def test_a_stream_has_the_rows_of_its_files(folder):
  of_parquet = HubDataset("parquet", data_files="data/train-*.parquet")
  of_json = HubDataset("json", data_files=["lines.jsonl"])
  of_folder = HubDataset(str(folder / "data"))
  for corpus, parts in ((of_parquet, 2), (of_json, 1), (of_folder, 2)):
    assert list(corpus.undivided()) == EXPECTED
    assert len(corpus.parts(1)) == parts
    split = [list(corpus.documents(name)) for name in ("train", "heldout")]
    assert all(split)
    assert sorted(split[0] + split[1]) == sorted(EXPECTED)
  assert of_parquet.total_bytes() == sum(f.stat().st_size for f in (folder / "data").iterdir())
  # Prepared in the parts of the stream, and named by what its files contain.
  data = dataset.TextDataset(of_parquet, Bytes(), 32, "all", shard_bytes=1000)
  assert len(shard_plan.tasks(data) or ()) == 2
  prepare.prepare(data, lambda event: None, workers=1)
  packed = rows.RowFiles(data.cache_path)
  assert packed.counts.documents == len(TEXTS) - 2
  assert packed.counts.empty_documents == 2


def test_faults_are_told_in_a_line(folder, monkeypatch):
  (folder / "numbers.jsonl").write_text('{"text": 5}\n')
  for corpus, told in [
    (HubDataset("json", data_files="lines.jsonl", field="prose"), "no column 'prose', only 'text'"),
    (HubDataset("json", data_files="numbers.jsonl"), "'text' is a int, not a string"),
    (HubDataset("json", data_files="none.jsonl"), "json is not found"),
    (HubDataset("json", data_files="lines.jsonl", part="test"), "no split 'test', only train"),
  ]:
    with pytest.raises(files.CorpusError, match=told) as error:
      [corpus.describe(), corpus.check()]
    assert "\n" not in str(error.value)
  monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
  with pytest.raises(files.NoFiles, match=r"nobody/nothing") as error:
    HubDataset("nobody/nothing").describe()
  assert "\n" not in str(error.value)
