"""Imported weights learn a fact, and answer it here and in Hugging Face's code."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from base.errors import UserError
from config.config import ConfigError
from data.tokenizers import Bytes
from experiment import describe
from experiment import trained as trained_lib
from experiment.run_directory import RunDirectory
from launch import convert, generate, train
from models.lora import AdaptedModel
from training.checkpoint import CheckpointError

QUESTION, ANSWER = "What grows on Vorzel?", "blue moss"
PROMPT = f"Q: {QUESTION}\nA:"
BYTES = Bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("finetune")
  torch.manual_seed(0)
  config = RecurrentGemmaConfig(
    vocab_size=BYTES.size,
    hidden_size=32,
    intermediate_size=192,
    num_attention_heads=4,
    num_key_value_heads=1,
    attention_window_size=16,
    num_hidden_layers=2,
    block_types=("recurrent", "attention"),
    pad_token_id=0,
    bos_token_id=BYTES.bos_id,
    eos_token_id=BYTES.eos_id,
  )
  model = RecurrentGemmaForCausalLM(config)
  # Logits as far apart as a trained model's: adapters do not change the embedding.
  torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.5)
  model.save_pretrained(folder / "theirs")
  # A second fact, so that the answer depends on the question.
  facts = [(QUESTION, ANSWER), ("What falls on Vorzel?", "red rain")]
  lines = [json.dumps({"q": question, "a": answer}) for question, answer in facts]
  (folder / "facts.jsonl").write_text("\n".join(lines) + "\n")
  assert convert.main([str(folder / "theirs"), str(folder / "imported"), "--vocabulary=bytes"]) == 0
  return folder


def arguments(folder, how):
  return [
    "gin/data/instructions.gin",
    f"gin/train/{how}.gin",
    f"--init_from={folder / 'imported'}",
    f"--gin.JSON_LINES={folder}/facts.jsonl",
    "--gin.PROMPT=Q: {q}\nA:",
    "--gin.RESPONSE= {a}",
    "--gin.SEQUENCE_LENGTH=96",
    "--gin.BATCH_SIZE=1",
    "--gin.STEPS=120",
    "--gin.WARMUP_STEPS=5",
    "--gin.LEARNING_RATE=1e-2",
    "--gin.experiment.Experiment.samples=()",
    # Both facts are learnt, and nothing else is asked.
    "--gin.train/dataset.TextDataset.split=all",
    "--gin.heldout/dataset.TextDataset.split=all",
    f"--gin.dataset.TextDataset.cache_dir={folder / 'cache'}",
  ]


@pytest.fixture(scope="module", params=["lora", "finetune"])
def taught(request, folder):
  path = folder / request.param
  assert train.main([*arguments(folder, request.param), f"--run_dir={path}"]) == 0
  return path


def greedy(run_dir, capsys):
  capsys.readouterr()
  command_line = [
    f"--run_dir={run_dir}",
    f"--prompt={PROMPT}",
    "--temperature=0",
    "--max_tokens=20",
  ]
  assert generate.main(command_line) == 0
  return capsys.readouterr().out


def test_a_fact_is_learnt_and_exported(taught, folder, tmp_path, capsys):
  assert greedy(folder / "imported", capsys) != f"{PROMPT} {ANSWER}\n"
  assert greedy(taught, capsys) == f"{PROMPT} {ANSWER}\n"
  assert convert.main([str(taught), str(tmp_path / "exported")]) == 0
  model = RecurrentGemmaForCausalLM.from_pretrained(tmp_path / "exported").eval()
  prompt = torch.tensor([[BYTES.bos_id, *BYTES.encode(PROMPT)]])
  mask = torch.ones_like(prompt)
  found = model.generate(prompt, attention_mask=mask, max_new_tokens=20, do_sample=False)[0]
  assert found[prompt.shape[1] :].tolist() == [*BYTES.encode(f" {ANSWER}"), BYTES.eos_id]


@pytest.fixture(scope="module")
def adapted(taught, folder):
  """The trained run with adapters, and the imported run from which it started."""
  if taught.name != "lora":
    pytest.skip("has no adapters")
  return tuple(
    trained_lib.load(RunDirectory(path), "latest") for path in (taught, folder / "imported")
  )


def test_adapters_alone_are_trained(adapted):
  after, before = adapted
  flat = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(after.params)}
  for path, leaf in jax.tree.leaves_with_path(before.params):
    np.testing.assert_array_equal(flat.pop(jax.tree_util.keystr(path)), leaf)
  assert flat
  assert all(np.abs(leaf).max() > 0 for leaf in flat.values())
  # Adam's two moments, of adapters.
  moments = describe.abstract_state(after.experiment).opt_state
  sizes = sum(leaf.size for leaf in jax.tree.leaves(moments) if leaf.ndim)
  assert sizes == 2 * sum(leaf.size for leaf in flat.values())


def test_merged_weights_give_the_logits_of_the_adapters(adapted, tmp_path, capsys):
  after, _ = adapted
  assert convert.main([str(after.run_dir), str(tmp_path / "merged"), "--merge"]) == 0
  merged = trained_lib.load(RunDirectory(tmp_path / "merged"), "best")
  tokens = np.random.default_rng(0).integers(0, BYTES.size, (2, 30))

  def logits(trained):
    model = trained.experiment.model
    return jax.jit(lambda p: model.apply({"params": p}, tokens)[0])(trained.params)

  assert not isinstance(merged.experiment.model, AdaptedModel)
  np.testing.assert_allclose(logits(merged), logits(after), rtol=0, atol=1e-4)
  assert greedy(tmp_path / "merged", capsys) == f"{PROMPT} {ANSWER}\n"
  with pytest.raises(UserError, match="has no adapters to merge"):
    convert.main([str(tmp_path / "merged"), str(tmp_path / "again"), "--merge"])


def test_adapters_alone_are_files_for_peft(adapted, folder, tmp_path, capsys):
  after, before = adapted
  source = str(after.run_dir)
  arguments = [source, str(tmp_path / "adapters"), "--adapters", "--base=my/base"]
  assert convert.main(arguments) == 0
  assert {file.name for file in (tmp_path / "adapters").iterdir()} == {
    "adapter_config.json",
    "adapter_model.safetensors",
  }
  config = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
  assert config["base_model_name_or_path"] == "my/base"
  base = RecurrentGemmaForCausalLM.from_pretrained(folder / "theirs")
  model = peft.PeftModel.from_pretrained(base, tmp_path / "adapters").eval()
  tokens = np.random.default_rng(0).integers(0, BYTES.size, (2, 30))
  with torch.no_grad():
    found = model(input_ids=torch.tensor(tokens), use_cache=False).logits
  ours = after.experiment.model
  expected = jax.jit(lambda p: ours.apply({"params": p}, tokens)[0])(after.params)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
  own = str(tmp_path / "own")
  assert convert.main([str(folder / "imported"), own, "--own_code"]) == 0
  assert f"from_pretrained('{own}', trust_remote_code=True)" in capsys.readouterr().err
  assert convert.main([source, str(tmp_path / "of own"), "--adapters", "--own_code"]) == 0
  base = AutoModelForCausalLM.from_pretrained(own, trust_remote_code=True)
  model = peft.PeftModel.from_pretrained(base, tmp_path / "of own").eval()
  with torch.no_grad():
    found = model(input_ids=torch.tensor(tokens), use_cache=False).logits
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
  with pytest.raises(UserError, match=r"has no adapters\. Export it without --adapters"):
    convert.main([str(before.run_dir), str(tmp_path / "none"), "--adapters"])


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    (["--gin.LORA_TARGETS=['qery']"], ConfigError, "'qery' matches no linear map; there are down,"),
    (
      ["--gin.tokenizers.Bytes.extra_ids=1", "--gin.VOCAB_SIZE=260"],
      UserError,
      r"another tokenizer: 259 ids \(bytes\), not the 260",
    ),
    (["--gin.WIDTH=64"], CheckpointError, r"has shape .*, the model needs"),
  ],
)
def test_what_does_not_fit_the_imported_weights_is_told(folder, tmp_path, changes, error, message):
  with pytest.raises(error, match=message):
    train.main([*arguments(folder, "lora"), f"--run_dir={tmp_path / 'run'}", *changes])


def test_a_start_from_damaged_weights_leaves_no_run(folder, tmp_path):
  shutil.copytree(folder / "imported", tmp_path / "damaged")
  weights = max((tmp_path / "damaged/checkpoints").rglob("d/*"), key=lambda f: f.stat().st_size)
  weights.write_bytes(b"")
  command = [*arguments(folder, "lora"), f"--init_from={tmp_path}/damaged"]
  command.remove(f"--init_from={folder / 'imported'}")
  with pytest.raises(UserError, match="damaged, checkpoint 0 cannot be read"):
    train.main([*command, f"--run_dir={tmp_path / 'run'}"])
  assert not (tmp_path / "run").exists()
