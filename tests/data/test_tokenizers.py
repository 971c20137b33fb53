"""Tokenizers: ids of the known kind, text that comes back, files that tell when they changed."""

import gzip
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.config import ConfigError
from data import corpora, tokenizer_training, tokenizers
from experiment import experiment
from launch import vocabulary as command

TEXTS = [
  "def f(x):\n    return  x\n\n\n\tif é中: 😀 end ",
  "  leading, trailing  ",
  "a\r\nb\n",
  "�﻿x ﬁ ½ Å",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A small SentencePiece model, trained on a part of what CPython carries."""
  output = tmp_path_factory.mktemp("vocabulary") / "small.model"
  tokenizer_training.train_sentencepiece(corpora.PythonLibrary(), 600, output, megabytes=0.5)
  return tokenizers.SentencePiece(str(output))


@settings(deadline=None)
@given(st.text())
def test_bytes_come_back(text):
  tokenizer = tokenizers.Bytes()
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert ids == [b + 3 for b in text.encode()]
  assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())


def test_decoding_stops_at_eos_and_skips_what_is_no_text():
  tokenizer = tokenizers.Bytes(extra_ids=2)
  assert tokenizer.size == 261
  ids = [0, *tokenizer.encode("ab"), 2, 260, 0xC3 + 3, *tokenizer.encode("c"), 1, 70]
  assert tokenizer.decode(np.array(ids)) == "abc"


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_is_lossless(model, text):
  ids = model.encode(text)
  assert model.decode([*ids, model.eos_id, 70]) == text
  assert model.unk_id not in ids
  assert model.byte_lengths()[ids].sum() == len(text.encode())


def test_sentencepiece_has_the_ids_of_seqio(model):
  assert (model.size, model.pad_id, model.eos_id, model.unk_id, model.bos_id) == (600, 0, 1, 2, 0)
  assert max(model.encode("import os")) < model.size
  assert len(model.encode("return self")) < 5


def test_ids_beyond_the_vocabulary_decode_as_unknown(model):
  assert model.decode([10**6]) == model.decode([model.unk_id])


def test_training_sees_no_heldout_document_and_gives_the_same_model_again(tmp_path):
  (tmp_path / "seen.txt").write_text("abcdefgh " * 400)
  only_heldout = corpora.TextFiles(str(tmp_path / "*.txt"), heldout_fraction=1.0)
  with pytest.raises(corpora.CorpusError, match="text-files has no text to train"):
    tokenizer_training.train_sentencepiece(only_heldout, 300, tmp_path / "x.model")
  corpus = corpora.TextFiles(str(tmp_path / "*.txt"), heldout_fraction=0.0)
  models = [
    tokenizer_training.train_sentencepiece(corpus, 270, tmp_path / name)
    for name in ("one.model", "two.model")
  ]
  assert models[0].describe() == models[1].describe()


def test_a_kill_while_it_trains_leaves_nothing(tmp_path):
  (tmp_path / "text.txt").write_text("abcdefgh " * 400)
  found = []

  class Watched(corpora.TextFiles):
    def documents(self, split):
      for document in super().documents(split):
        yield document
        found.append(sorted(file.name for file in (tmp_path / "out").glob("*")))

  corpus = Watched(str(tmp_path / "*.txt"), heldout_fraction=0.0)
  tokenizer_training.train_sentencepiece(corpus, 270, tmp_path / "out" / "x.model")
  assert found == [[]]
  assert [file.name for file in (tmp_path / "out").iterdir()] == ["x.model"]


def test_a_size_that_the_text_cannot_fill_is_an_error(tmp_path):
  (tmp_path / "few.txt").write_text("ab " * 50)
  corpus = corpora.TextFiles(str(tmp_path / "*.txt"), heldout_fraction=0.0)
  with pytest.raises(corpora.CorpusError, match=r"for 5000 pieces: at most \d+\. Set --size"):
    tokenizer_training.train_sentencepiece(corpus, 5000, tmp_path / "x.model")
  assert [p.name for p in tmp_path.iterdir()] == ["few.txt"]


def test_a_size_that_cannot_spell_the_characters_is_an_error(tmp_path):
  characters = "".join(chr(0x4E00 + n) for n in range(400))
  (tmp_path / "many.txt").write_text(f"{characters}\n" * 20)
  corpus = corpora.TextFiles(str(tmp_path / "*.txt"), heldout_fraction=0.0)
  with pytest.raises(corpora.CorpusError, match=r"300 pieces are too few .*--size=\d+ or higher"):
    tokenizer_training.train_sentencepiece(corpus, 300, tmp_path / "x.model")


def test_long_lines_are_learnt_from(tmp_path):
  # SentencePiece by itself leaves out a sentence of this length.
  (tmp_path / "long.txt").write_text("héllo wörld " * 3000)
  corpus = corpora.TextFiles(str(tmp_path / "*.txt"), heldout_fraction=0.0)
  tokenizer = tokenizer_training.train_sentencepiece(corpus, 275, tmp_path / "x.model")
  assert len(tokenizer.encode("héllo wörld héllo wörld ")) <= 12


def test_command_trains_and_reports(tmp_path, capsys):
  for i in range(40):
    (tmp_path / f"{i}.txt").write_text(f"the same words, number {i}\n" * 30)
  output = tmp_path / "new" / "words.model"
  arguments = [f"--input={tmp_path}/*.txt", "--size=300", f"--output={output}"]
  assert command.main(arguments) == 0
  printed = capsys.readouterr().out
  assert "300 pieces" in printed
  assert "bytes per token" in printed
  assert tokenizers.SentencePiece(str(output)).size == 300


def test_command_names_what_is_wrong(tmp_path, capsys):
  (tmp_path / "a.txt").write_text("too little text\n" * 10)
  text, output = f"--input={tmp_path}/*.txt", f"--output={tmp_path}/x.model"
  (tmp_path / "file").write_text("")
  told = {
    ("--input=python", text, output): "all inputs must be of one kind",
    (f"--input={tmp_path}/none/*.txt", output): r"no file matches --input=.*none/\*\.txt\. Correct",
    (text, output, "--megabytes=1e-300"): "megabytes=1e-300 takes none of it",
    (text, output): r"too little text for 8000 pieces: at most \d+\. Set --size=\d+",
    (text, f"--output={tmp_path}/file/x.model"): r"x\.model cannot be written: .*--output",
  }
  for arguments, message in told.items():
    with pytest.raises((corpora.CorpusError, tokenizers.TokenizerError), match=message):
      command.main(arguments)
  told = {
    (text, output, "--size=259"): "--size=259 must be from 260",
    (text, output, "--size=99999999"): "--size=99999999 must be from 260",
    (text, output, "--megabytes=nan"): "--megabytes=nan must be",
    (text, f"--output={tmp_path}"): "is a folder",
  }
  for arguments, message in told.items():
    with pytest.raises(SystemExit, match="2"):
      command.main(arguments)
    assert message in capsys.readouterr().err
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "file"]


@pytest.mark.parametrize("ending", [".jsonl.gz", ".ndjson"])
def test_the_command_learns_no_json_as_text(tmp_path, ending):
  packed = gzip.compress if ending.endswith("gz") else bytes
  (tmp_path / f"a{ending}").write_bytes(packed(b'{"text": "good"}\n' * 99))
  output = f"--output={tmp_path}/x.model"
  with pytest.raises(corpora.CorpusError, match=rf"has JSON lines.*/\*{re.escape(ending)}'"):
    command.main([f"--input={tmp_path}/*", output])
  with pytest.raises(corpora.CorpusError, match="no 'body', only 'text'"):
    command.main([f"--input={tmp_path}/*{ending}", "--field=body", output])


def test_the_command_advises_options_that_it_has(tmp_path):
  (tmp_path / "a.txt").write_text("x")
  arguments = [f"--input={tmp_path}/a.txt", "--size=300", f"--output={tmp_path}/x.model"]
  with pytest.raises(corpora.CorpusError, match=r"has 1 byte of text .* Give more text") as error:
    command.main(arguments)
  assert "--gin." not in str(error.value)


def test_the_command_s_last_line_starts_from_the_user_s_own_run_file(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "broken.gin").write_text("STEPS =\n")
  (tmp_path / "part.gin").write_text("STEPS = 3\n")
  words = command.next_command(["a.txt"], "text", "x.model", 300)
  assert words[3] == "gin/runs/griffin_quickstart.gin"
  (tmp_path / "my_run.gin").write_text("include 'experiment.gin'\nSTEPS = 3\n")
  assert command.next_command(["a.txt"], "text", "x.model", 300)[3] == "my_run.gin"
  assert "--gin.JSON_LINES=a.jsonl.gz" in command.next_command(["a.jsonl.gz"], "text", "x.json", 9)
  assert isinstance(command.corpus_of(["a.jsonl.gz"], "text"), corpora.JsonLines)


@pytest.mark.parametrize("kind", ["text", "json", "two"])
def test_the_command_s_last_line_makes_a_model_of_the_tokenizer_s_size(
  tmp_path, capsys, monkeypatch, kind
):
  """As typed, from the folder of the text, with relative paths."""
  monkeypatch.chdir(tmp_path)
  lines = [f"line {n} of the text, number {n * n}" for n in range(400)]
  Path("a [1].txt").write_text("\n".join(lines))
  Path("b.txt").write_text("\n".join(lines))
  Path("a.jsonl").write_text("\n".join(json.dumps({"body": line}) for line in lines))
  inputs = {"text": ["a [1].txt"], "json": ["*.jsonl"], "two": ["a [1].txt", "b*.txt"]}[kind]
  given = [f"--input={name}" for name in inputs]
  status = command.main([*given, "--output=out/x.model", "--size=310", "--field=body"])
  assert status == 0
  last = capsys.readouterr().err.splitlines()[-1]
  prefix, _, typed = last.partition("python -m launch.train ")
  assert prefix == "next: "
  words = shlex.split(typed)
  files = [word for word in words if not word.startswith("-")]
  bindings = [word for word in words if word.startswith("--gin.")]
  built = experiment.build(experiment.load(files, bindings))
  assert built.model.vocab_size == built.tokenizer.size == 310
  built.check_tokenizer()
  assert sum(map(len, built.train_data.corpus.documents("all"))) > 5000


def test_a_tokenizer_that_is_not_yet_trained_is_one_line_that_says_how():
  files = ["gin/runs/griffin_quickstart.gin", "gin/data/text_files_sentencepiece.gin"]
  found = experiment.load(files, ["--gin.VOCABULARY_MODEL=/none/x.model"])
  with pytest.raises(ConfigError, match=r"x\.model does not exist.*launch\.vocabulary --input"):
    experiment.build(found)


@pytest.mark.parametrize("extra_ids", [0, 3])
def test_saved_tokenizers_need_nothing_else(model, tmp_path, extra_ids):
  for name, tokenizer in {
    "bytes": tokenizers.Bytes(extra_ids),
    "pieces": tokenizers.SentencePiece(model.path, extra_ids),
  }.items():
    tokenizers.save(tokenizer, tmp_path / name)
    loaded = tokenizers.load(tmp_path / name)
    assert loaded.describe() == tokenizer.describe()
    assert loaded.size == tokenizer.size
    assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_a_changed_model_file_is_noticed(model, tmp_path):
  tokenizers.save(model, tmp_path)
  description = json.loads((tmp_path / "vocabulary.json").read_text())
  (tmp_path / "vocabulary.json").write_text(json.dumps(description | {"sha256": "0" * 64}))
  with pytest.raises(ValueError, match=r"vocabulary\.model does not match .*sha256"):
    tokenizers.load(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
  with pytest.raises(tokenizers.TokenizerError, match="has no saved tokenizer"):
    tokenizers.load(tmp_path)
  with pytest.raises(
    tokenizers.TokenizerError, match=r"no\.model does not exist.*launch\.vocabulary"
  ):
    tokenizers.SentencePiece(str(tmp_path / "no.model")).encode("a")
  (tmp_path / "vocabulary.json").write_text('{"kind": "unigrams"}')
  with pytest.raises(ValueError, match="of kind 'unigrams'"):
    tokenizers.load(tmp_path)


@pytest.mark.parametrize(
  "content",
  [
    "",
    "{",
    "[]",
    "[" * 100_000,
    '"bytes"',
    "{}",
    '{"kind": "bytes"}',
    '{"kind": "bytes", "extra_ids": "5"}',
    '{"kind": "bytes", "extra_ids": -1}',
    '{"kind": "bytes", "extra_ids": 1e400}',
    '{"kind": "bytes", "extra_ids": NaN}',
    '{"kind": "bytes", "extra_ids": 99999999999999}',
    '{"kind": "symbols", "size": 2}',
    '{"kind": "symbols", "size": null}',
    '{"kind": {}}',
    '{"kind": "sentencepiece", "extra_ids": 0}',
    b"\xff\xfe",
  ],
)
def test_a_damaged_description_is_one_line(tmp_path, content):
  (tmp_path / "vocabulary.json").write_bytes(
    content if isinstance(content, bytes) else content.encode()
  )
  with pytest.raises(tokenizers.TokenizerError, match="vocabulary") as caught:
    tokenizers.load(tmp_path)
  assert len(str(caught.value)) < 500
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x00" * 50, b"\x0a\xff\xff\xff\xff\x0f"])
@pytest.mark.parametrize("extra_ids", [0, 3])
def test_a_file_that_is_no_model_is_named(tmp_path, content, extra_ids):
  path = tmp_path / "a.model"
  path.write_bytes(content)
  with pytest.raises(tokenizers.TokenizerError, match=r"a\.model is not a SentencePiece model"):
    tokenizers.SentencePiece(str(path), extra_ids).describe()


def test_a_model_cut_short_or_a_folder_is_named(model, tmp_path):
  path = tmp_path / "a.model"
  path.write_bytes(Path(model.path).read_bytes()[:700])
  with pytest.raises(tokenizers.TokenizerError, match="is not a SentencePiece model"):
    tokenizers.SentencePiece(str(path)).describe()
  with pytest.raises(tokenizers.TokenizerError, match="not a regular file but a folder"):
    tokenizers.SentencePiece(str(tmp_path)).describe()


def test_a_model_without_eos_is_refused(tmp_path):
  import sentencepiece

  path = tmp_path / "no_eos.model"
  with path.open("wb") as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(["some words here"] * 20),
      model_writer=file,
      vocab_size=20,
      model_type="bpe",
      eos_id=-1,
      minloglevel=2,
    )
  with pytest.raises(ValueError, match="has no EOS id"):
    tokenizers.SentencePiece(str(path)).encode("words")
