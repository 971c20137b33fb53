"""Streams of Hugging Face's `datasets` from files have their rows."""

import json
import time

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from base import remote_files
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


def test_splits_of_a_stream_are_packed_in_shards(folder):
  corpus = HubDataset("parquet", data_files="data/train-*.parquet")
  found = []
  for split in ("train", "heldout"):
    data = dataset.TextDataset(corpus, Bytes(), 32, split, shard_bytes=1000)
    assert len(shard_plan.tasks(data) or ()) == 2
    found += [text.raw for task in shard_plan.tasks(data) for text in shard_plan.texts(data, task)]
  assert sorted(found) == sorted(EXPECTED)


def test_a_stream_is_listed_anew_before_rows_are_made(folder):
  corpus = HubDataset("parquet", data_files="data/train-*.parquet")
  before = corpus.describe()
  assert len(corpus.parts(1)) == 2
  table = pyarrow.parquet.read_table(folder / "data/train-1.parquet")
  pyarrow.parquet.write_table(table, folder / "data/train-2.parquet")
  assert corpus.describe() == before  # listed once, until rows are made
  remote_files.forget()
  assert corpus.describe() != before
  assert len(corpus.parts(1)) == 3


def test_files_are_found_from_within_their_folder(folder, monkeypatch):
  monkeypatch.chdir(folder / "data")
  assert list(HubDataset(".").undivided()) == EXPECTED
  (folder / "my [text]").mkdir()
  (folder / "lines.jsonl").rename(folder / "my [text]" / "lines.jsonl")
  assert list(HubDataset("json", data_files=f"{folder}/my [text]/*.jsonl").undivided()) == EXPECTED


def test_faults_are_told_in_a_line(folder, monkeypatch):
  (folder / "numbers.jsonl").write_text('{"text": 5}\n')
  for corpus, told in [
    (HubDataset("json", data_files="lines.jsonl", field="prose"), "no column 'prose', only 'text'"),
    (HubDataset("json", data_files="numbers.jsonl"), "'text' is a number, not a string"),
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


def test_a_hub_that_cannot_be_reached_is_told_at_once(monkeypatch, caplog):
  # Nobody listens at port 1; the library would repeat each request for half a minute.
  for module in (datasets.config, huggingface_hub.constants, huggingface_hub.hf_api):
    for name in ("HF_ENDPOINT", "ENDPOINT"):
      if hasattr(module, name):
        monkeypatch.setattr(module, name, "http://127.0.0.1:1")
  remote_files.forget()
  began = time.monotonic()
  with pytest.raises(
    files.NoFiles, match=r"the hub does not answer for no/such .*Check the network"
  ):
    HubDataset("no/such").describe()
  assert time.monotonic() - began < 5
  assert not caplog.records
