"""Runs become folders that transformers opens, whole or not at all."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import (
  AutoModelForCausalLM,
  LlamaConfig,
  LlamaForCausalLM,
  RecurrentGemmaConfig,
  RecurrentGemmaForCausalLM,
)

from base.errors import UserError
from conversion import adapters
from data.tokenizer_json import TokenizerJson
from data.tokenizer_training import train_tokenizer_json
from experiment import trained as trained_lib
from experiment.run_directory import RunDirectory
from launch import convert, evaluate, generate
from tests.conversion import pairs
from training import stored_parameters

VOCAB_SIZE = 259
TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 21))
SIZES = {
  "vocab_size": VOCAB_SIZE,
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "bos_token_id": 0,
  "eos_token_id": 1,
}


def imported(folder, theirs):
  """Saves a model of transformers in several files, and imports it as a run."""
  pairs.randomize(theirs).save_pretrained(folder / "theirs", max_shard_size="20KB")
  assert convert.main([str(folder / "theirs"), str(folder / "run"), "--vocabulary=bytes"]) == 0
  return folder / "run", theirs


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
  config = LlamaConfig(**SIZES, intermediate_size=24, num_key_value_heads=2, rope_parameters=rope)
  return imported(tmp_path_factory.mktemp("llama"), LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory):
  """A model without attention, which no class of transformers decodes."""
  config = RecurrentGemmaConfig(
    **SIZES, intermediate_size=48, lru_width=24, block_types=["recurrent"], pad_token_id=0
  )
  return imported(tmp_path_factory.mktemp("recurrent"), RecurrentGemmaForCausalLM(config))


def their_logits(model):
  with torch.no_grad():
    return model.eval()(torch.tensor(TOKENS), use_cache=False).logits.float().numpy()


def check_first_token_is_read(model):
  """Bytes have one id for the start and for padding; generate must not hide it as padding."""
  tokens = torch.tensor(np.concatenate([[0], TOKENS[0, :6] + 2]))[None] % VOCAB_SIZE
  found = [
    model.eval().generate(tokens, max_new_tokens=8, do_sample=False, eos_token_id=None, **more)
    for more in ({}, {"attention_mask": torch.ones_like(tokens)})
  ]
  assert model.config.bos_token_id == 0
  assert model.config.pad_token_id is None
  assert torch.equal(*found)


def test_a_llama_is_imported_generates_and_is_exported(llama, tmp_path, capsys):
  (run, theirs), target = llama, tmp_path / "target"
  trained = trained_lib.load(RunDirectory(run), "best")
  found = pairs.logits(trained.experiment.model, trained.params, TOKENS)
  np.testing.assert_allclose(found, their_logits(theirs), rtol=0, atol=pairs.TOLERANCE)
  assert generate.main([f"--run_dir={run}", "--prompt=Hello", "--max_tokens=3"]) == 0
  assert convert.main([str(run), str(target), "--shard_gb=0.00002"]) == 0
  assert "for transformers' LlamaForCausalLM\n" in capsys.readouterr().out
  again = AutoModelForCausalLM.from_pretrained(target)
  assert isinstance(again, LlamaForCausalLM)
  assert again.config.max_position_embeddings == theirs.config.max_position_embeddings == 2048
  expected = theirs.state_dict()
  assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
  check_first_token_is_read(again)


class Words:
  """A corpus for a tokenizer."""

  name = "words"

  def documents(self, split):
    yield " ".join(map("".join, itertools.product(("ba", "ko", "mi", "ne"), repeat=3))).encode()

  def total_bytes(self):
    return 448


def test_an_embedding_may_have_more_rows_than_a_tokenizer_json_has_ids(tmp_path, capsys):
  source, run, target = tmp_path / "source", tmp_path / "run", tmp_path / "target"
  config = LlamaConfig(**SIZES | {"vocab_size": 300}, intermediate_size=24)
  theirs = pairs.randomize(LlamaForCausalLM(config))
  theirs.save_pretrained(source)
  train_tokenizer_json(Words(), 270, source / "tokenizer.json")
  assert TokenizerJson(str(source)).size < 300
  assert convert.main([str(source), str(run)]) == 0
  assert generate.main([f"--run_dir={run}", "--prompt=bako", "--max_tokens=3"]) == 0
  assert "bako" in capsys.readouterr().out
  (tmp_path / "text.txt").write_text("ba ko " * 20)
  arguments = [f"--run_dir={run}", "--length=16", "--data=data/text_files_bytes.gin"]
  arguments.append(f"--gin.TEXT_FILES='{tmp_path}/text.txt'")
  for mesh in ([], ["--mesh=mesh/zero3.gin"]):
    # The sizes of a tokenizer that --data names are not the model's.
    assert evaluate.main([*arguments, *mesh]) == 0
  assert convert.main([str(run), str(target)]) == 0
  again = AutoModelForCausalLM.from_pretrained(target)
  expected = theirs.state_dict()
  assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
  train_tokenizer_json(Words(), 320, tmp_path / "larger.json")
  arguments = [str(source), str(tmp_path / "again"), f"--vocabulary={tmp_path}/larger.json"]
  with pytest.raises(UserError, match=r"larger\.json has 3\d\d ids, .* are for 300"):
    convert.main(arguments)


def test_a_model_without_a_class_is_exported_with_its_code(recurrent, tmp_path, capsys):
  (run, theirs), target = recurrent, tmp_path / "target"
  assert convert.main([str(run), str(target)]) == 0
  told = capsys.readouterr().out
  assert "with its code in modeling_griffin_jax.py (trust_remote_code=True)" in told
  found = AutoModelForCausalLM.from_pretrained(target, trust_remote_code=True)
  np.testing.assert_allclose(
    their_logits(found), their_logits(theirs), rtol=0, atol=pairs.TOLERANCE
  )
  kinds = {}
  for folder, more in ((target, ()), (tmp_path / "half", ("--dtype=bfloat16",))):
    if more:
      assert convert.main([str(run), str(folder), *more]) == 0
    tensors = load_file(folder / "model.safetensors")
    kinds[folder.name] = {(n.endswith("a_param"), str(t.dtype)) for n, t in tensors.items()}
  assert kinds["half"] == {(True, "float32"), (False, "bfloat16")}
  assert kinds["target"] == {(True, "float32"), (False, "float32")}
  half = AutoModelForCausalLM.from_pretrained(tmp_path / "half", trust_remote_code=True)
  assert half.layers[0].mixer.recurrence.a_param.dtype == torch.float32
  assert half.embed_tokens.weight.dtype == torch.bfloat16
  card = (target / "README.md").read_text()
  assert card.startswith("---\nlibrary_name: transformers\n")
  assert 'AutoModelForCausalLM.from_pretrained("target", trust_remote_code=True)' in card
  assert "| rnn_width | 24 |" in card
  assert "The run has no records: its weights were imported." in card


def test_own_code_can_be_chosen_where_a_class_would_do(llama, tmp_path, capsys):
  (run, theirs), target = llama, tmp_path / "target"
  assert convert.main([str(run), str(target), "--own_code"]) == 0
  assert "with its code in modeling_griffin_jax.py" in capsys.readouterr().out
  found = AutoModelForCausalLM.from_pretrained(target, trust_remote_code=True)
  np.testing.assert_allclose(
    their_logits(found), their_logits(theirs), rtol=0, atol=pairs.TOLERANCE
  )


def test_a_card_has_the_figures_of_the_run(llama, tmp_path):
  run, target = shutil.copytree(llama[0], tmp_path / "run"), tmp_path / "target"
  records = [{"step": 0, "heldout_loss": 2.5}, {"step": 5, "heldout_loss": 1.0}]
  (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
  (run / "loss.png").write_bytes(b"a picture")
  assert convert.main([str(run), str(target), "--dtype=bfloat16"]) == 0
  card = (target / "README.md").read_text()
  # Of the checkpoint's step, 0, not of later ones.
  assert "| held-out loss, nats per token | 2.5000 |" in card
  assert "| tokenizer | bytes, 259 ids |" in card
  assert '| dtype | "bfloat16" |' in card
  assert "![Loss against the step](loss.png)" in card
  assert (target / "loss.png").read_bytes() == b"a picture"


def test_a_damaged_parameter_is_named_and_nothing_is_left(llama, tmp_path, monkeypatch):
  read = stored_parameters.host_checksum
  monkeypatch.setattr(stored_parameters, "host_checksum", lambda array: read(array) + 1)
  with pytest.raises(UserError, match="the values of embedding/embedding differ from those"):
    convert.main([str(llama[0]), str(tmp_path / "target")])
  assert not list(tmp_path.iterdir())


def test_another_architecture_is_not_exported(recurrent, tmp_path, monkeypatch):
  monkeypatch.setattr(adapters, "ADAPTERS", {"llama": adapters.ADAPTERS["llama"]})
  with pytest.raises(UserError, match="Llama cannot hold this model: its blocks are not all the"):
    convert.main([str(recurrent[0]), str(tmp_path / "target")])
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--base=x"], "--base has no effect without --adapters"),
    (["--adapters", "--dtype=float32"], "--dtype has no effect with --adapters"),
    (["--adapters", "--merge"], "--adapters has no effect with --merge"),
  ],
)
def test_options_without_effect_are_refused(llama, tmp_path, capsys, arguments, message):
  with pytest.raises(SystemExit):
    convert.main([str(llama[0]), str(tmp_path / "target"), *arguments])
  assert message in capsys.readouterr().err
