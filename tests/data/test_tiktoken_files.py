"""Files of tiktoken's ranks give tiktoken's ids."""

import base64

import numpy as np
import pytest
import tiktoken
from tiktoken_ext import openai_public

from data import corpora, dataset, prepare, rows, tokenizers
from data.tiktoken_files import ENCODINGS, Tiktoken
from data.tokenizers import TokenizerError
from tests.data.hostile import INVALID, TEXTS

LONG = ["<|endoftext|> spelled out", "'s'LL 12345 ÀB aB\r\n\r\n  x", "a" * 30000, " " * 30000 + "b"]


def ranks():
  """256 bytes and a few hundred longer tokens."""
  found = {bytes([byte]): byte for byte in range(256)}
  for text in (
    " the",
    "ing",
    "text",
    " text",
    "  ",
    "    ",
    "\n\n",
    "é",
    "😀",
    "ab",
    "123",
    "aaaa",
  ):
    raw = text.encode()
    for stop in range(2, len(raw) + 1):
      found.setdefault(raw[:stop], len(found))
  return found


def write(folder, found=None):
  lines = [f"{base64.b64encode(t).decode()} {r}\n" for t, r in (found or ranks()).items()]
  path = folder / "own.tiktoken"
  path.write_text("".join(lines))
  return str(path)


@pytest.mark.parametrize("name", ENCODINGS)
def test_ids_are_those_of_tiktoken_on_hostile_text(tmp_path, name):
  known = ENCODINGS[name]
  ours = Tiktoken(write(tmp_path), name)
  theirs = tiktoken.Encoding(
    "x", pat_str=known.pattern, mergeable_ranks=ranks(), special_tokens=dict(known.special)
  )
  texts = [*TEXTS, *LONG, *(raw.decode("utf-8", errors="replace") for raw in INVALID)]
  lengths = ours.byte_lengths()
  for text, batched in zip(texts, ours.encode_batch(texts), strict=True):
    ids = ours.encode(text)
    assert ids == batched == theirs.encode(text, disallowed_special=())
    assert ours.decode([*ids, ours.eos_id, 5]) == text
    assert lengths[ids].sum() == len(text.encode())
  assert ours.size == known.size == len(lengths)
  assert lengths[[ours.eos_id, ours.bos_id]].tolist() == [0, 0]
  assert known.special[known.eos] == ours.eos_id


@pytest.mark.parametrize("name", ENCODINGS)
def test_more_blanks_than_tiktoken_can_read_are_told(tmp_path, name):
  ours = Tiktoken(write(tmp_path), name)
  with pytest.raises(
    TokenizerError, match=r"cannot encode a text of 1,500,001 characters \(called"
  ):
    ours.encode_batch([" " * 1500000 + "b"])


@pytest.mark.parametrize(
  ("name", "theirs"),
  [
    ("gpt2", openai_public.r50k_base),
    ("cl100k_base", openai_public.cl100k_base),
    ("o200k_base", openai_public.o200k_base),
  ],
)
def test_patterns_and_special_tokens_are_the_published_ones(name, theirs, monkeypatch):
  monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *args, **options: {})
  published = theirs()
  assert ENCODINGS[name].pattern == published["pat_str"]
  assert dict(ENCODINGS[name].special) == published["special_tokens"]
  assert ENCODINGS[name].size == published.get(
    "explicit_n_vocab", max(published["special_tokens"].values()) + 1
  )


def test_rows_and_run_directories_keep_it(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "a.txt").write_text("the text is text\n" * 300, encoding="utf-8")
  for tokenizer in (
    Tiktoken(write(tmp_path), "llama3"),
    Tiktoken(write(tmp_path), pattern=r"\S+|\s+", bos="<s>", eos="</s>"),
  ):
    data = dataset.TextDataset(corpora.TextFiles("a.txt"), tokenizer, 32)
    prepare.prepare(data, lambda event: None)
    packed = rows.RowFiles(data.cache_path).check(tokenizer, 32)
    assert packed.counts.text_bytes > 4000
    assert packed.tokenizer.describe() == tokenizer.describe()
    assert packed.tokenizer.encode(" text") == tokenizer.encode(" text")
    tokenizers.save(tokenizer, tmp_path / "run")
    assert tokenizers.load(tmp_path / "run").describe() == tokenizer.describe()
  assert tokenizer.bos_id == len(ranks())
  assert tokenizer.eos_id == tokenizer.bos_id + 1
  assert Tiktoken(write(tmp_path), pattern=".").bos_id == len(ranks())
  assert Tiktoken(write(tmp_path), pattern=".").size == len(ranks()) + 1


def test_files_are_recognized_by_their_number_of_ranks(tmp_path):
  many = ranks()
  for number in range(50256 - len(many)):
    many[b"x" + str(number).encode() + b"y"] = len(many)
  path = write(tmp_path, many)
  assert Tiktoken(path).describe() == Tiktoken(path, "gpt2").describe()
  assert np.count_nonzero(Tiktoken(path).byte_lengths()) == 50256


def test_faults_are_told(tmp_path):
  path = write(tmp_path)
  for options, match in [
    ({}, r"has \d+ ranks, as no published file. Set --gin.tiktoken_files.Tiktoken.encoding to one"),
    ({"encoding": "gpt9"}, "encoding='gpt9' is unknown. Choose from gpt2, cl100k_base"),
    ({"encoding": "gpt2", "eos": "</s>"}, r"eos='</s>' is none of the special tokens of 'gpt2'"),
    ({"pattern": "("}, r"pattern='\('.*Correct it"),
    ({"pattern": ".", "encoding": "gpt2"}, "has no effect beside a pattern"),
  ]:
    with pytest.raises(TokenizerError, match=match):
      Tiktoken(path, **options).describe()
  contents = {
    "json.tiktoken": ('{"model": {}}', r"json\.tiktoken:1: not a token in base64 and its rank"),
    "cut.tiktoken": ("IQ== 0\n", "lacks the byte 0: it is cut off or damaged"),
  }
  for name, (text, match) in contents.items():
    (tmp_path / name).write_text(text)
    with pytest.raises(TokenizerError, match=match):
      Tiktoken(str(tmp_path / name), "gpt2").describe()
  twice = ranks() | {b"zz": 5}
  (tmp_path / "twice").mkdir()
  with pytest.raises(TokenizerError, match="a rank of its own for each token"):
    Tiktoken(write(tmp_path / "twice", twice), "gpt2").describe()
  with pytest.raises(TokenizerError, match=r"none\.tiktoken does not exist"):
    Tiktoken(str(tmp_path / "none.tiktoken")).describe()
  (tmp_path / "large").mkdir()
  with pytest.raises(TokenizerError, match="special token's in 'gpt2'"):
    Tiktoken(write(tmp_path / "large", ranks() | {b"zz": 60000}), "gpt2").describe()
