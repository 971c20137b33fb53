"""Text in, text out: prompts as they are written, continuations as they read, options out of
range.
"""

from __future__ import annotations

import argparse
import json
import shlex
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import sentencepiece

from base.errors import UserError
from data import recall, tokenizers
from experiment import end_tokens
from experiment import experiment as experiment_lib
from experiment.run_directory import RunDirectory
from inference import text_generator
from launch import generate, train
from models.accounting import list_parameters
from parallel.tree_paths import by_path
from tests import small_models, small_run
from training import streamed_checkpoint

GIN = (
  "experiment.gin",
  "models/griffin.gin",
  "sizes/tiny.gin",
  "mesh/single.gin",
  "kernels/auto.gin",
)
SIZES = {"WIDTH": 32, "RNN_WIDTH": 32, "HEADS": 2, "DEPTH": 2, "griffin.griffin.gate_blocks": 2}
PROSE = "the griffin is a creature with the body of a lion and the head of an eagle."


def make_run(path, tokenizer, *data, **macros):
  """A run directory with random weights, whose most likely token depends on the context."""
  given = [f"--gin.{name}={value!r}" for name, value in {**SIZES, **macros}.items()]
  config = experiment_lib.load([*GIN, *data, "train/steps.gin"], given)
  model = experiment_lib.build(config).model
  params = small_models.initialize(model)
  params = {**params, "stack": jax.tree.map(lambda x: 4 * x, params["stack"])}
  run = RunDirectory(path)
  run.write_config(config, "a test")
  tokenizers.save(tokenizer, path)
  paths = [parameter.path for parameter in list_parameters(model)]
  arrays = ((name, np.asarray(leaf)) for name, leaf in by_path(params).items())
  streamed_checkpoint.write_parameters(path, 0, paths, arrays, {"source": "a test"})
  return path


@pytest.fixture(scope="module")
def bytes_run(tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "bytes"
  return make_run(path, tokenizers.Bytes(), "data/python_bytes.gin")


@pytest.fixture(scope="module")
def pieces_run(tmp_path_factory):
  """A run under a SentencePiece model with SentencePiece's own defaults, as Gemma's and Llama's."""
  folder = tmp_path_factory.mktemp("pieces")
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([PROSE] * 50),
    model_prefix=str(folder / "pieces"),
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  tokenizer = tokenizers.SentencePiece(str(folder / "pieces.model"))
  macros = {"VOCAB_SIZE": tokenizer.size, "VOCABULARY_MODEL": tokenizer.path}
  return make_run(folder / "run", tokenizer, "data/python_sentencepiece.gin", **macros)


def generated(capsys, run, *arguments):
  if not any(argument.startswith("--max_tokens") for argument in arguments):
    arguments = ("--max_tokens=24", *arguments)
  assert generate.main([f"--run_dir={run}", *arguments]) == 0
  return capsys.readouterr().out


def test_words_after_a_prompt_are_kept_apart_from_it(pieces_run, capsys):
  tokenizer = RunDirectory(pieces_run).tokenizer()
  prompt = "the griffin"
  shown = generated(capsys, pieces_run, f"--prompt={prompt}", "--temperature=5", "--top_p=1")
  streamed = generated(
    capsys, pieces_run, f"--prompt={prompt}", "--temperature=5", "--top_p=1", "--stream"
  )
  assert shown == streamed
  seen = set()
  for seed in range(12):
    options = [f"--prompt={prompt}", "--temperature=5", "--top_p=1", f"--seed={seed}"]
    seen.add(generated(capsys, pieces_run, *options, "--max_tokens=1")[len(prompt)])
  pieces = [tokenizer._processor.IdToPiece(i) for i in range(tokenizer.size)]
  assert any(piece.startswith("▁") for piece in pieces)
  assert " " in seen


def test_only_line_ends_end_a_prompt(bytes_run, tmp_path, capsys):
  file = tmp_path / "prompts.txt"
  lines = ["a\u2028b", "c\x0bd\x0ce\x1cf\x85g", "h\0i", "", "j\rk", "last"]
  file.write_bytes(("\ufeff" + "\r\n".join(lines[:3]) + "\n" + "\n".join(lines[3:])).encode())
  assert generate._prompts([], file) == lines
  file.write_bytes(b"one\n\ntwo\n")
  assert generate._prompts(["zero"], file) == ["zero", "one", "", "two"]
  file.write_bytes("one\n".encode("utf-16"))
  with pytest.raises(UserError, match="is not UTF-8"):
    generate._prompts([], file)
  file.write_bytes(("\r\n".join(lines[:3]) + "\r\n").encode())
  shown = generated(capsys, bytes_run, f"--prompts_file={file}")
  assert "--- prompt 3 of 3\nh\0i" in shown


def test_prompts_in_batches_and_streams_get_what_they_get_together(bytes_run, capsys, monkeypatch):
  prompts = ["one", "a much longer prompt " * 5, "one", "", "two", "one"]
  asked = [f"--prompt={prompt}" for prompt in prompts]
  together = generated(capsys, bytes_run, *asked)
  assert generated(capsys, bytes_run, *asked, "--stream") == together
  monkeypatch.setattr(text_generator, "TOKENS_AT_ONCE", 80)
  sizes = [len(rows) for rows in text_generator._batches([3, 100, 3, 1, 3, 3], 24)]
  assert sizes == [1, 2, 2, 1]
  assert generated(capsys, bytes_run, *asked) == together


@pytest.mark.parametrize(
  ("argument", "told"),
  [
    ("--temperature=inf", "--temperature=inf must be "),
    ("--temperature=1e400", "--temperature=inf must be "),
    ("--temperature=nan", "--temperature=nan must be above 0"),
    ("--temperature=1e-40", "--temperature=1e-40 must be "),
    ("--temperature=-1", "--temperature=-1.0 must be above 0"),
    ("--top_k=0", "--top_k=0 must be a whole number of at least 1"),
    ("--top_p=0", "--top_p=0.0 must be in (0, 1]"),
    ("--top_p=nan", "--top_p=nan must be in (0, 1]"),
    ("--seed=1e400", "--seed: invalid int value"),
    ("--max_tokens=0", "--max_tokens=0 must be at least 1"),
    ("--max_tokens=99999999999999999999", "must be at least 1 and at most 1073741824"),
  ],
)
def test_options_out_of_range_name_their_flag(bytes_run, argument, told, capsys):
  with pytest.raises(SystemExit) as left:
    generate.main([f"--run_dir={bytes_run}", argument])
  assert left.value.code == 2
  assert told in capsys.readouterr().err


def test_seeds_of_any_size_are_valid(bytes_run, capsys):
  shown = {
    seed: generated(capsys, bytes_run, f"--seed={seed}", "--temperature=2", "--max_tokens=12")
    for seed in (0, -1, 2**32 - 1, 2**32, 2**40 + 7, -(10**30))
  }
  assert shown[0] == shown[2**32]
  assert shown[-1] == shown[2**32 - 1]
  assert len(set(shown.values())) > 2


def test_more_tokens_than_memory_holds_are_one_line(bytes_run, monkeypatch):
  def texts(*args, **kwargs):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

  monkeypatch.setattr(text_generator.TextGenerator, "texts", texts)
  with pytest.raises(UserError, match=r"not enough memory for 256 tokens .*--max_tokens"):
    generate.main([f"--run_dir={bytes_run}"])


def test_special_tokens_in_a_prompt_are_text(pieces_run, capsys):
  assert generated(capsys, pieces_run, "--prompt=</s><pad><s>").startswith("</s><pad><s>")


def write_end_tokens(run, text):
  (run / "hugging_face").mkdir(exist_ok=True)
  (run / "hugging_face" / "generation_config.json").write_text(text)


def stop_ids(run):
  return end_tokens.stop_ids(run, experiment_lib.build(experiment_lib.load(run / "config.gin")))


def test_each_end_token_of_an_imported_folder_ends_a_text(tmp_path, capsys):
  run = make_run(tmp_path / "run", tokenizers.Bytes(), "data/python_bytes.gin")
  options = ["--prompt=x", "--temperature=3", "--top_p=1", "--seed=1", "--max_tokens=40"]
  free = generated(capsys, run, *options)
  stop = next(character for character in free[4:] if character.isascii() and character.isalpha())
  write_end_tokens(run, json.dumps({"eos_token_id": [1, tokenizers.Bytes().encode(stop)[0]]}))
  assert generated(capsys, run, *options) == free[: free.index(stop, 1)] + "\n"
  assert generated(capsys, run, *options, "--stream") == free[: free.index(stop, 1)] + "\n"


@pytest.mark.parametrize(
  ("text", "ids"),
  [
    ("{}", ()),
    ('{"eos_token_id": null}', ()),
    ('{"eos_token_id": 1}', (1,)),
    ('{"eos_token_id": []}', ()),
  ],
)
def test_what_hugging_face_writes_is_understood(bytes_run, text, ids):
  write_end_tokens(bytes_run, text)
  assert stop_ids(bytes_run) == ids


@pytest.mark.parametrize(
  "text",
  [
    "",
    "[1]",
    "{",
    "\0",
    '{"eos_token_id": "1"}',
    '{"eos_token_id": [1, 259]}',
    '{"eos_token_id": -1}',
    '{"eos_token_id": true}',
    '{"eos_token_id": [[1]]}',
    '{"eos_token_id": 1e400}',
    f'{{"eos_token_id": [{"1, " * 9999} "x"]}}',
    "[" * 100_000,
  ],
  ids=lambda text: text[:20],
)
def test_a_malformed_end_token_is_one_line(bytes_run, text):
  write_end_tokens(bytes_run, text)
  with pytest.raises(UserError, match=r"generation_config\.json") as caught:
    stop_ids(bytes_run)
  assert "\n" not in str(caught.value)
  assert len(str(caught.value)) < 500
  write_end_tokens(bytes_run, "{}")


def test_a_failure_of_sampling_ends_no_run(tmp_path, capsys, monkeypatch):
  run_file = small_run.write(tmp_path / "run.gin", more="STEPS = 2\nWARMUP_STEPS = 1\n")

  def texts(*args, **kwargs):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes.")

  monkeypatch.setattr(text_generator.TextGenerator, "texts", texts)
  assert train.main([str(run_file), f"--run_dir={tmp_path / 'run'}"]) == 0
  shown = capsys.readouterr()
  (line,) = [line for line in shown.err.split("\n") if line.startswith("warning: no samples")]
  assert "Out of memory allocating 9 bytes." in line
  assert "held-out bits per byte" in shown.out


def test_the_next_command_suits_the_run(capsys):
  for corpus, more in ((object(), ["--by_position"]), (recall.InductionHeads(), [])):
    given = argparse.Namespace(run_dir=Path("my run"), trust=["mine"])
    generate._tell_next(given, types.SimpleNamespace(corpus=corpus))
    words = shlex.split(capsys.readouterr().err)
    assert words[3:] == ["launch.evaluate", "--run_dir=my run", *more, "--trust=mine"]
