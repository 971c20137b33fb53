"""Ids by pieces are those of the tokenizers library, on any text."""

import json
import random

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from data import corpora, dataset, piece_cache, prepare, rows
from data.tokenizer_json import TokenizerJson
from tests.data.hostile import TEXTS

BYTE_LEVEL = {
  "type": "ByteLevel",
  "add_prefix_space": False,
  "trim_offsets": True,
  "use_regex": True,
}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
WITHOUT_REGEX = BYTE_LEVEL | {"use_regex": False}


def sequence(*steps):
  return {"type": "Sequence", "pretokenizers": list(steps)}


RULES = {
  "gpt2": BYTE_LEVEL,
  "digits": sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL),
  "llama3": sequence(SPLIT | {"pattern": {"Regex": piece_cache._SPLITS[0]}}, WITHOUT_REGEX),
  "qwen2": sequence(SPLIT | {"pattern": {"Regex": piece_cache._SPLITS[1]}}, WITHOUT_REGEX),
}
SOURCE = "It's the text: we'll test\r\n\r\n  12345 é 中文 x=3;\n\n\tdef f(): don't\n" * 20


def trained(rule):
  """A BPE of these pieces, with two special tokens, one of which is plain words."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  described = json.loads(tokenizer.to_str()) | {"pre_tokenizer": rule}
  tokenizer = tokenizers.Tokenizer.from_str(json.dumps(described))
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=["<|end|>", "of text"],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator([SOURCE], trainer)
  return tokenizer


LIBRARIES = {name: trained(rule) for name, rule in RULES.items()}
CACHES = {name: piece_cache.of(library) for name, library in LIBRARIES.items()}


def require_equal(name, texts):
  found = CACHES[name].encode(texts)
  expected = LIBRARIES[name].encode_batch(texts, add_special_tokens=False)
  for text, ours, theirs in zip(texts, found, expected, strict=True):
    assert ours.dtype == np.int32
    assert ours.tolist() == theirs.ids, (name, text)


FRAGMENTS = [
  "'s",
  "'LL",
  "'",
  " ",
  "  ",
  "\n",
  "\r\n",
  "\t",
  "\x0b",
  "\x1c",
  "\x85",
  "\xa0",
  "\u2003",
]
FRAGMENTS += [
  "a",
  "Zeta",
  "é",
  "\u017f",
  "\u212a",
  "中",
  "0",
  "12",
  "½",
  "²",
  "Ⅷ",
  "٣",
  "_",
  "=",
  "...",
  "\u0301",
]
FRAGMENTS += [
  "😀",
  "\u180e",
  "\ufeff",
  "ẞ",
  "₹",
  "\0",
  "<|end|>",
  "of text",
  "<|",
  "of",
  "/",
  "\u1e9e",
]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join), max_size=4))
def test_ids_of_fragments_are_the_librarys(texts):
  for name in RULES:
    require_equal(name, texts)


ANY = st.text(max_size=30) | st.text(st.sampled_from(list(map(chr, piece_cache._known("")))))


@settings(deadline=None, max_examples=200)
@given(st.lists(ANY, max_size=4))
def test_ids_of_any_text_are_the_librarys(texts):
  for name in RULES:
    require_equal(name, texts)


@pytest.mark.parametrize("name", RULES)
def test_every_known_character_is_cut_as_the_library_does(name):
  known = [chr(code) for code in piece_cache._known("")]
  assert len(known) > 40_000
  assert set(map(chr, range(128))) <= set(known)
  draw = random.Random(0)
  text = "".join(x + draw.choice([" ", "", "a", "1", "\n", "'", "  "]) for x in known)
  assert CACHES[name]._is_known(text)
  require_equal(name, [text[n : n + 2000] for n in range(0, len(text), 2000)] + TEXTS)


def test_other_rules_and_normalizers_are_left_to_the_library():
  for rule in (
    BYTE_LEVEL | {"add_prefix_space": True},
    WITHOUT_REGEX,
    sequence({"type": "Digits", "individual_digits": False}, BYTE_LEVEL),
    sequence(SPLIT | {"pattern": {"Regex": r"\p{N}{1,3}"}}, WITHOUT_REGEX),
    sequence(RULES["llama3"]["pretokenizers"][0], BYTE_LEVEL),
    sequence({"type": "Whitespace"}, BYTE_LEVEL),
    {"type": "Whitespace"},
    sequence(),
    None,
  ):
    assert piece_cache._pattern(rule) is None
  library = trained(BYTE_LEVEL)
  library.normalizer = tokenizers.normalizers.Lowercase()
  assert piece_cache.of(library) is None
  for template, known in (("$A", True), ("$A $A", False)):
    library = trained(BYTE_LEVEL)
    library.post_processor = tokenizers.processors.TemplateProcessing(template)
    assert (piece_cache.of(library) is not None) == known


def test_the_table_is_bounded(monkeypatch):
  monkeypatch.setattr(piece_cache, "_MOST_PIECES", 50)
  cache = piece_cache.of(LIBRARIES["gpt2"])
  texts = [f"word{n} " + "x" * 100 for n in range(200)]
  for text in texts:
    (found,) = cache.encode([text])
    assert found.tolist() == LIBRARIES["gpt2"].encode(text, add_special_tokens=False).ids
    assert len(cache._ids) <= 50
    assert max(map(len, cache._ids), default=0) <= 64


def test_rows_are_made_of_the_same_ids(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "a.txt").write_text("the text is text; of text 😀\n" * 200, encoding="utf-8")
  LIBRARIES["digits"].save(str(tmp_path / "own.json"))
  tokenizer = TokenizerJson("own.json", eos="<|end|>")
  data = dataset.TextDataset(corpora.TextFiles("a.txt"), tokenizer, 32, "all")
  prepare.prepare(data, lambda event: None)
  packed = rows.RowFiles(data.cache_path)
  found = packed.tokens[0 : len(packed)][packed.segment_ids[0 : len(packed)] > 0]
  expected = LIBRARIES["digits"].encode((tmp_path / "a.txt").read_text(), add_special_tokens=False)
  assert found.tolist() == [*expected.ids, tokenizer.eos_id]
