"""Ids that other programs wrote become the rows of the same documents."""

import struct

import numpy as np
import pytest

from data import corpora, dataset, prepare, rows, token_files
from data.token_files import TokenFiles
from data.tokenizers import Bytes
from tests.data.test_shard_packing import documents

TEXTS = ["first é", "second one", "x" * 70, "the last"]
IDS = [[*Bytes().encode(text), 1] for text in TEXTS]


def nano(folder):
  np.concatenate(IDS).astype(np.uint16).tofile(folder / "a.bin")
  return "a.bin"


def array(folder):
  np.save(folder / "a.npy", np.concatenate(IDS).astype(np.int32))
  return "a.npy"


def megatron(folder, ends=True):
  """As megatron.core.datasets.indexed_dataset writes: without EOS, the second text in two parts."""
  cut = 0 if ends else 1
  parts = [ids[: len(ids) - cut] for ids in IDS]
  sequences = [parts[0], parts[1][:4], parts[1][4:], *parts[2:]]
  np.concatenate(sequences).astype(np.int32).tofile(folder / "a.bin")
  sizes = [len(ids) for ids in sequences]
  places = (4 * np.cumsum([0, *sizes[:-1]])).astype("<i8")
  header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, len(sequences), len(IDS) + 1)
  content = header + np.array(sizes, "<i4").tobytes() + places.tobytes()
  (folder / "a.idx").write_bytes(content + np.array([0, 1, 3, 4, 5], "<i8").tobytes())
  return "a.bin"


MAKES = {"bin": nano, "npy": array, "idx": megatron, "eos": lambda f: megatron(f, ends=False)}


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("block", [2**22, 5])
def test_rows_are_those_of_the_text(tmp_path, monkeypatch, kind, block):
  monkeypatch.setattr(token_files, "_BLOCK", block)
  corpus = TokenFiles(str(tmp_path / MAKES[kind](tmp_path)))
  text = dataset.TextDataset(corpus, Bytes(), 16, "all", str(tmp_path / "cache"))
  prepare.prepare(text, lambda event: None)
  opened = rows.RowFiles(text.cache_path, verify=True)
  assert documents(opened) == TEXTS
  assert opened.counts.documents == 4
  assert opened.text_bytes() == sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize(
  ("name", "content", "told"),
  [
    ("a.bin", b"\x01\x02\x03", r"a\.bin has 3 bytes, no multiple of the 2"),
    ("a.npy", b"no array", r"a\.npy is not an array of ids"),
    ("a.npy", b"PK\3\4 an archive", r"a\.npy is not an array of ids"),
    ("a.txt", b"text", r"a\.txt is neither a \.bin nor a \.npy file"),
    ("a.bin", b"\xff\xff", "holds the id 65535, the tokenizer has ids 0 to 258"),
  ],
)
def test_what_are_no_ids_is_one_line(tmp_path, name, content, told):
  (tmp_path / name).write_bytes(content)
  text = dataset.TextDataset(
    TokenFiles(str(tmp_path / name)), Bytes(), 16, "all", str(tmp_path / "cache")
  )
  with pytest.raises(corpora.CorpusError, match=told):
    prepare.prepare(text, lambda event: None)


def test_rows_are_named_by_the_index_too_and_read_where_the_files_are_gone(tmp_path):
  corpus = TokenFiles(str(tmp_path / megatron(tmp_path)))
  text = dataset.TextDataset(corpus, Bytes(), 16, "all", str(tmp_path / "cache"))
  with_index = text.cache_path
  (tmp_path / "a.idx").rename(tmp_path / "b.idx")
  assert text.cache_path != with_index
  (tmp_path / "b.idx").rename(tmp_path / "a.idx")
  assert text.cache_path == with_index
  prepare.prepare(text, lambda event: None)
  (tmp_path / "a.bin").unlink()
  assert text.cache_path == with_index
  other = dataset.TextDataset(corpus, Bytes(), 32, "all", str(tmp_path / "cache"))
  with pytest.raises(corpora.NoFiles, match=r"no file matches .*a\.bin"):
    prepare.prepare(other, lambda event: None)


def test_an_index_of_other_tokens_is_refused(tmp_path):
  corpus = TokenFiles(str(tmp_path / megatron(tmp_path)))
  index = (tmp_path / "a.idx").read_bytes()
  (tmp_path / "a.idx").write_bytes(index[:-8] + struct.pack("<q", 6))  # of 5 sequences
  with pytest.raises(corpora.CorpusError, match=r"a\.idx names tokens that .*a\.bin does not have"):
    list(corpus.token_examples(Bytes(), "all"))
  (tmp_path / "a.idx").write_bytes(index)
  with pytest.raises(corpora.CorpusError, match=r"a\.idx is neither a \.bin nor a \.npy file"):
    list(TokenFiles(str(tmp_path / "a.i*")).token_examples(Bytes(), "all"))
  (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:-8])
  with pytest.raises(corpora.CorpusError, match=r"a\.idx names tokens that .*a\.bin does not have"):
    list(corpus.token_examples(Bytes(), "all"))
  (tmp_path / "a.idx").write_bytes(b"MMIDIDX")
  with pytest.raises(corpora.CorpusError, match=r"a\.idx is not an index of Megatron-LM"):
    list(corpus.token_examples(Bytes(), "all"))
  with pytest.raises(corpora.CorpusError, match="no held-out part of its own"):
    list(corpus.token_examples(Bytes(), "train"))


def test_ids_that_spell_no_text_are_refused(tmp_path):
  np.save(tmp_path / "a.npy", np.full(100, 2, np.int32))  # the unknown token
  corpus = TokenFiles(str(tmp_path / "a.npy"))
  text = dataset.TextDataset(corpus, Bytes(), 16, "all", str(tmp_path / "cache"))
  with pytest.raises(corpora.CorpusError, match="spell no bytes of text in the loss"):
    prepare.prepare(text, lambda event: None)
  assert not text.is_prepared()
