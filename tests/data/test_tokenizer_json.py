"""Tokenizers in tokenizer.json files give the ids of transformers, and count the bytes of text."""

import hashlib
import json
import sys

import numpy as np
import pytest
import tokenizers as library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from data import corpora, packing, tokenizer_json, tokenizer_training, tokenizers
from data.tokenizer_json import TokenizerJson
from launch import vocabulary
from tests.data import hostile

TEXTS = [
  *hostile.TEXTS,
  *(raw.decode("utf-8", "replace") for raw in hostile.INVALID),
  "",
  "the end <|endoftext|> in the middle, <s> and </s>, [UNK] [CLS]",
  "added tokens: GRIFFIN griffin",
  "ÅÄÖ Café résumé 12345",
]
LEARNED = ["the quick brown fox jumps over the lazy dog, it is said", "Café 12 and 345"] * 20

# As `save_pretrained` writes a token.
END = {"__type": "AddedToken", "content": "<|endoftext|>", "special": True, "lstrip": False}
END |= {"rstrip": False, "normalized": False, "single_word": False}


def byte_level():
  tokenizer = library.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=320,
    special_tokens=["<|endoftext|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(LEARNED, trainer)
  tokenizer.add_tokens(["GRIFFIN"])
  # As a file that was saved after use: it tells to cut texts.
  tokenizer.enable_truncation(5)
  return tokenizer, {"eos_token": END, "bos_token": None}


def metaspace():
  tokenizer = library.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
  tokenizer.normalizer = normalizers.NFKC()
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A", special_tokens=[("<s>", 1)]
  )
  trainer = trainers.BpeTrainer(
    vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
  )
  tokenizer.train_from_iterator(LEARNED, trainer)
  return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def word_piece():
  tokenizer = library.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece()
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
  trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
  tokenizer.train_from_iterator(LEARNED, trainer)
  return tokenizer, {"pad_token": "[PAD]", "eos_token": "[SEP]", "bos_token": "[CLS]"}


KINDS = {"byte_level": byte_level, "metaspace": metaspace, "word_piece": word_piece}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
  """A folder as `save_pretrained` writes it."""
  folder = tmp_path_factory.mktemp(request.param)
  tokenizer, config = KINDS[request.param]()
  tokenizer.save(str(folder / "tokenizer.json"))
  config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  return folder


def test_ids_and_special_tokens_are_those_of_transformers(folder):
  from transformers import AutoTokenizer

  theirs = AutoTokenizer.from_pretrained(folder)
  ours = TokenizerJson(str(folder))
  assert ours.eos_id == theirs.eos_token_id
  assert ours.bos_id == (theirs.bos_token_id or theirs.eos_token_id)
  assert ours.size == len(theirs)
  for text, batched in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text) == batched == expected
    shown = theirs.decode(expected, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if ours.eos_id not in expected:
      assert ours.decode([*expected, ours.eos_id, 5]) == shown


def test_a_copy_beside_rows_is_the_same_tokenizer(folder, tmp_path):
  ours = TokenizerJson(str(folder / "tokenizer.json"))
  tokenizers.save(ours, tmp_path)
  copy = tokenizers.load(tmp_path)
  assert copy.describe() == ours.describe()
  assert copy.encode(TEXTS[0]) == ours.encode(TEXTS[0])
  (tmp_path / "tokenizer_config.json").unlink()
  tokenizer_json._loaded.cache_clear()
  assert tokenizers.load(tmp_path).describe() == ours.describe()
  other = tmp_path / "other"
  tokenizers.save(ours, other)
  (other / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes() + b" ")
  with pytest.raises(tokenizers.TokenizerError, match=r"tokenizer\.json does not match .*sha256"):
    tokenizers.load(other)


def test_rows_count_the_bytes_of_the_text_whatever_the_tokenizer_drops(folder):
  """Normalised, unknown and special text counts too: bits per byte divide by these."""
  ours = TokenizerJson(str(folder))
  texts = [text for text in TEXTS if ours.encode(text)]
  packer = packing.Packer(ours, 7)
  rows = [b for t in texts for b in packer.add(np.array(ours.encode(t)), len(t.encode()))]
  rows.append(packer.finish())
  expected = sum(len(text.encode()) for text in texts)
  assert sum(int(block.row_bytes.sum()) for block in rows) == expected == packer.counts.text_bytes


def write(folder, tokenizer, **config):
  tokenizer.save(str(folder / "tokenizer.json"))
  if config:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
  return TokenizerJson(str(folder))


def test_without_a_configuration_the_usual_names_are_looked_for(tmp_path):
  ours = write(tmp_path, byte_level()[0])
  assert ours.eos_token == ours.bos_token == "<|endoftext|>"
  assert ours.pad_id == ours.unk_id == ours.eos_id
  assert TokenizerJson(str(tmp_path), eos="GRIFFIN").eos_id == ours.library.token_to_id("GRIFFIN")
  lengths = ours.byte_lengths()
  assert lengths[ours.eos_id] == 0
  assert lengths[ours.encode("GRIFFIN")].tolist() == [7]
  assert lengths[ours.encode("Café 😀\n\tthe")].sum() == len("Café 😀\n\tthe".encode())


def test_a_unigram_model_has_its_own_unknown_id(tmp_path):
  pieces = [("</s>", 0.0), ("<unk>", -9.0), ("▁a", -1.0)]
  tokenizer = library.Tokenizer(models.Unigram(pieces, unk_id=1))
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  ours = write(tmp_path, tokenizer)
  assert (ours.eos_id, ours.unk_id, ours.encode("a é")[0]) == (0, 1, 2)
  packer = packing.Packer(ours, 8)
  assert not list(packer.add(np.array(ours.encode("a é")), 4))
  assert packer.counts.unknown_tokens == ours.encode("a é").count(1) > 0


@pytest.mark.parametrize(
  ("config", "eos", "told"),
  [
    ({"eos_token": None}, None, r"names no end of a text.*TokenizerJson\.eos=TOKEN"),
    ({"eos_token": "<eos>"}, None, r"config.json names the eos '<eos>', which is not a token"),
    ({}, "<eos>", r"eos='<eos>' is not a token"),
  ],
)
def test_a_tokenizer_needs_an_end_of_a_text(tmp_path, config, eos, told):
  write(tmp_path, byte_level()[0], **config)
  with pytest.raises(tokenizers.TokenizerError, match=told):
    TokenizerJson(str(tmp_path), eos=eos).describe()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 9000])
def test_what_is_no_tokenizer_is_one_line(tmp_path, content):
  (tmp_path / "x.json").write_bytes(content)
  with pytest.raises(
    tokenizers.TokenizerError, match=r"x\.json is not a tokenizer\.json"
  ) as caught:
    TokenizerJson(str(tmp_path / "x.json")).size  # noqa: B018
  assert "\n" not in str(caught.value)
  with pytest.raises(tokenizers.TokenizerError, match=r"y\.json does not exist\. Train one"):
    TokenizerJson(str(tmp_path / "y.json")).size  # noqa: B018


def changed(tmp_path, change):
  """A tokenizer.json of the kind of `byte_level` after `change(values)`."""
  values = json.loads(byte_level()[0].to_str())
  change(values)
  file = tmp_path / "tokenizer.json"
  file.write_text(json.dumps(values))
  return TokenizerJson(str(file))


def unknown_word(values):
  values["model"] = {"type": "WordLevel", "vocab": {"<|endoftext|>": 0}, "unk_token": "no"}


def empty_prefix(values):  # the library's own fault
  values["normalizer"] = {"type": "Prepend", "prepend": ""}


@pytest.mark.parametrize("change", [unknown_word, empty_prefix])
def test_a_text_that_the_library_cannot_encode_is_one_line(tmp_path, change):
  tokenizer = changed(tmp_path, change)
  for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
    with pytest.raises(tokenizers.TokenizerError, match=r"tokenizer.json cannot encode a text \("):
      encode(" a")


def test_ids_that_need_tables_of_gigabytes_are_refused(tmp_path):
  tokenizer = changed(tmp_path, lambda values: values["model"]["vocab"].update({"z": 4 * 10**9}))
  with pytest.raises(tokenizers.TokenizerError, match="has the id 4,000,000,000"):
    tokenizers.size_of(tokenizer)


def test_dropout_does_not_change_ids(tmp_path):
  tokenizer = changed(tmp_path, lambda values: values["model"].update(dropout=0.5))
  assert len({tuple(tokenizer.encode(LEARNED[0])) for _ in range(5)}) == 1


@pytest.mark.parametrize(
  ("output", "told"),
  [
    ("a.txt", r"a\.txt is text to train on\. Name another"),
    ("link.model", r"link\.model is text to train on"),
    ("notes.md", r"notes\.md exists and is no tokenizer of this kind\. Name another"),
    ("notes.json", r"notes\.json exists and is no tokenizer"),
  ],
)
def test_the_command_replaces_nothing_but_a_tokenizer(tmp_path, output, told):
  text = "\n".join(f"line {n} of the text" for n in range(3000))
  (tmp_path / "a.txt").write_text(text)
  (tmp_path / "link.model").symlink_to("a.txt")
  for name in ("notes.md", "notes.json"):
    (tmp_path / name).write_text("{}")
  with pytest.raises(corpora.CorpusError, match=told):
    vocabulary.main([f"--input={tmp_path / 'a.txt'}", f"--output={tmp_path / output}"])
  assert (tmp_path / "a.txt").read_text() == text
  assert (tmp_path / "notes.md").read_text() == (tmp_path / "notes.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["own.model", "own.json"])
def test_the_command_replaces_a_tokenizer_and_tells_of_the_new_one(tmp_path, name, capsys):
  (tmp_path / "a.txt").write_text("\n".join(2 * sorted(sys.modules)))
  arguments = [f"--input={tmp_path / 'a.txt'}", f"--output={tmp_path / name}"]
  for size in (400, 420):
    assert vocabulary.main([*arguments, f"--size={size}"]) == 0
    told = capsys.readouterr()
    assert f": {size} " in told.out
    assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() in told.out
    assert "fewer than" not in told.err


def test_the_command_keeps_the_configuration_of_another_tokenizer(tmp_path):
  (tmp_path / "a.txt").write_text("\n".join(2 * sorted(sys.modules)))
  (tmp_path / "tokenizer_config.json").write_text("{}")
  with pytest.raises(corpora.CorpusError, match=r"would replace .*tokenizer_config\.json"):
    vocabulary.main([f"--input={tmp_path / 'a.txt'}", f"--output={tmp_path / 'tokenizer.json'}"])
  assert (tmp_path / "tokenizer_config.json").read_text() == "{}"


def test_the_command_trains_one_that_transformers_loads(tmp_path, capsys):
  (tmp_path / "a.txt").write_text("\n".join(f"line {n} of the text, naïve" for n in range(3000)))
  output = tmp_path / "own" / "tokenizer.json"
  arguments = [f"--input={tmp_path / 'a.txt'}", f"--output={output}", "--size=270"]
  assert vocabulary.main(arguments) == 0
  told = capsys.readouterr()
  assert "270 tokens" in told.out
  assert "gin/data/text_files_tokenizer.gin" in told.err
  assert "VOCAB_SIZE" not in told.err
  assert "fewer" not in told.err
  all_words = [f"--input={tmp_path / 'a.txt'}", f"--output={tmp_path / 'all.json'}"]
  assert vocabulary.main([*all_words, "--size=30000"]) == 0
  assert "fewer than --size=30000: each word of the text is a token." in capsys.readouterr().err
  ours = TokenizerJson(str(output))
  assert ours.size == 270
  for text in hostile.TEXTS:
    assert ours.decode(ours.encode(text)) == text
  again = tokenizer_training.train_tokenizer_json(
    corpora.TextFiles(str(tmp_path / "a.txt")), 270, tmp_path / "b.json"
  )
  assert again.describe()["sha256"] == ours.describe()["sha256"]
  from transformers import AutoTokenizer

  assert AutoTokenizer.from_pretrained(output.parent).eos_token == "<|endoftext|>"
