"""RecurrentGemma's files are imported and exported with the same logits, or refused."""

from __future__ import annotations

import itertools
import json
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from recurrentgemma import common
from recurrentgemma import jax as recurrentgemma
from recurrentgemma.jax import utils as recurrentgemma_utils
from safetensors.numpy import load_file, save_file
from transformers import (
  RecurrentGemmaConfig,
  RecurrentGemmaForCausalLM,
)

from base.errors import UserError
from data.tokenizer_json import TokenizerJson
from data.tokenizer_training import train_sentencepiece, train_tokenizer_json
from experiment import trained as trained_lib
from experiment.run_directory import RunDirectory
from launch import convert, generate, train

VOCAB_SIZE = 259
WINDOW = 8
TOLERANCE = 1e-4  # float32, logits of standard deviation 2
TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 21))


def random_like(name, shape):
  # Norms and biases too: what is zero at the start would hide where it goes. Decays away from one.
  generator = np.random.default_rng(zlib.crc32(name.encode()))
  return 0.3 * generator.standard_normal(shape) - (3 if "_param" in name else 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("convert")


@pytest.fixture(scope="module")
def theirs():
  config = RecurrentGemmaConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=192,
    num_attention_heads=4,
    num_key_value_heads=2,
    attention_window_size=WINDOW,
    num_hidden_layers=5,
    lru_width=48,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=1,
  )
  model = RecurrentGemmaForCausalLM(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.copy_(torch.tensor(random_like(name, parameter.shape)))
  return model


@pytest.fixture(scope="module")
def hugging_face(folder, theirs):
  """Random weights in several files, as transformers writes them."""
  theirs.save_pretrained(folder / "theirs", max_shard_size="60KB")
  (folder / "theirs" / "tokenizer_config.json").write_text("{}")
  return folder / "theirs"


@pytest.fixture(scope="module")
def run_dir(folder, hugging_face):
  """The same weights as a run."""
  assert convert.main([str(hugging_face), str(folder / "run"), "--vocabulary=bytes"]) == 0
  return folder / "run"


def our_logits(run_dir):
  trained = trained_lib.load(RunDirectory(run_dir), "best")
  model = trained.experiment.model
  return jax.jit(lambda p, t: model.apply({"params": p}, t)[0])(trained.params, TOKENS)


def their_logits(model):
  with torch.no_grad():
    return model(torch.tensor(TOKENS), use_cache=False).logits.float().numpy()


def test_logits_of_imported_weights_are_hugging_face_s(run_dir, hugging_face, theirs):
  assert len(list(hugging_face.glob("*.safetensors"))) > 3
  expected = their_logits(theirs)
  assert expected.std() > 0.5
  np.testing.assert_allclose(our_logits(run_dir), expected, rtol=0, atol=TOLERANCE)


def test_an_imported_run_generates(run_dir, capsys):
  assert generate.main([f"--run_dir={run_dir}", "--prompt=Hello", "--max_tokens=3"]) == 0
  assert capsys.readouterr().out.startswith("Hello")


@pytest.mark.parametrize("shard_gb", [5, 0.00006])
def test_exported_files_are_the_imported_ones(run_dir, theirs, tmp_path, shard_gb, capsys):
  target = tmp_path / "exported"
  assert convert.main([str(run_dir), str(target), f"--shard_gb={shard_gb}"]) == 0
  told = capsys.readouterr().out
  assert "no tokenizer file for transformers: this run reads bytes." in told
  assert "byte b of the text's UTF-8 is id b + 3, BOS is 0, EOS 1" in told
  files = list(target.glob("*.safetensors"))
  assert len(files) == 1 if shard_gb == 5 else len(files) > 3
  for file in files:
    sizes = [tensor.nbytes for tensor in load_file(file).values()]
    assert sum(sizes) <= shard_gb * 1e9 or len(sizes) == 1
  assert (target / "tokenizer_config.json").read_text() == "{}"
  again = RecurrentGemmaForCausalLM.from_pretrained(target)
  expected = theirs.state_dict()
  assert again.state_dict().keys() == expected.keys()
  for name, tensor in again.state_dict().items():
    torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
  np.testing.assert_array_equal(their_logits(again.eval()), their_logits(theirs))


def test_bfloat16_weights_stay_what_they_are(hugging_face, theirs, tmp_path):
  source, run, target = tmp_path / "source", tmp_path / "run", tmp_path / "target"
  RecurrentGemmaForCausalLM.from_pretrained(hugging_face, dtype=torch.bfloat16).save_pretrained(
    source
  )
  assert convert.main([str(source), str(run), "--vocabulary=bytes"]) == 0
  trained = trained_lib.load(RunDirectory(run), "latest")
  # 259 ids, and padding that is cut again below.
  assert trained.params["embedding"]["embedding"].shape == (272, 32)
  kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(trained.params)}
  assert kinds == {"bfloat16", "float32"}  # float32: what makes the decays
  assert convert.main([str(run), str(target), "--dtype=bfloat16"]) == 0
  again = RecurrentGemmaForCausalLM.from_pretrained(target)
  for name, tensor in again.state_dict().items():
    assert tensor.dtype == torch.bfloat16
    expected = theirs.state_dict()[name].to(torch.bfloat16)
    torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


@pytest.fixture(scope="module")
def deepmind(folder):
  """A model of the package `recurrentgemma` with random weights, saved by its own code."""
  kinds = common.TemporalBlockType
  config = common.GriffinConfig(
    vocab_size=VOCAB_SIZE,
    width=32,
    mlp_expanded_width=96,
    num_heads=4,
    block_types=(kinds.RECURRENT, kinds.RECURRENT, kinds.ATTENTION) * 2,
    embeddings_scale_by_sqrt_dim=True,
    attention_window_size=WINDOW,
    logits_soft_cap=30.0,
    lru_width=48,
    scan_type=common.ScanType.LINEAR_NATIVE,
  )
  model = recurrentgemma.Griffin(config)
  one = jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), one, one))["params"]
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.asarray(random_like(str(path), x.shape), x.dtype), shapes
  )
  recurrentgemma_utils.save_parameters(str(folder / "deepmind" / "2b"), params)
  return model, params, folder / "deepmind" / "2b"


def test_logits_of_deepmind_s_weights_are_deepmind_s(deepmind, tmp_path):
  model, params, source = deepmind
  # Their window does not count the token itself.
  arguments = [str(source), str(tmp_path / "run"), "--vocabulary=bytes"]
  assert convert.main([*arguments, f"--gin.WINDOW={WINDOW + 1}"]) == 0
  positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
  expected, _ = jax.jit(lambda p, t: model.apply({"params": p}, t, positions))(params, TOKENS)
  assert expected.std() > 0.5
  np.testing.assert_allclose(our_logits(tmp_path / "run"), expected, rtol=0, atol=TOLERANCE)


def changed(folder, change):
  """Rewrites the first file with tensors changed by `change`."""
  file = min(folder.glob("*.safetensors"))
  tensors = load_file(file)
  change(tensors)
  save_file(tensors, file, metadata={"format": "pt"})
  index = folder / "model.safetensors.index.json"
  contents = json.loads(index.read_text())
  places = {k: v for k, v in contents["weight_map"].items() if v != file.name}
  contents["weight_map"] = places | dict.fromkeys(tensors, file.name)
  index.write_text(json.dumps(contents))


def changed_config(folder, **values):
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | values))


def rename(tensors):
  tensors["model.embedding.weight"] = tensors.pop("model.embed_tokens.weight")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda folder: changed(folder, rename),
      r"1 missing \(model\.embed_tokens\.weight \(259, 32\)\) and 1 unknown "
      r"\(model\.embedding\.weight \(259, 32\)\)",
    ),
    (
      lambda folder: changed(
        folder, lambda t: t.update({"model.embed_tokens.weight": np.zeros((31, 32), np.float32)})
      ),
      r"model\.embed_tokens\.weight has shape \(31, 32\), this model needs \(259, 32\)",
    ),
    (
      lambda folder: changed(
        folder, lambda t: t.update({"lm_head.weight": np.zeros((259, 32), np.float32)})
      ),
      r"lm_head\.weight differs from the embedding, but tie_word_embeddings is true",
    ),
    (lambda folder: max(folder.glob("*.safetensors")).unlink(), r"-00006\.safetensors is missing"),
    (
      lambda folder: max(folder.glob("*.safetensors")).write_bytes(b"x" * 99),
      r"-00006\.safetensors is damaged",
    ),
    (
      lambda folder: changed_config(folder, model_type="gpt2"),
      r"model_type='gpt2' is not supported \(supported: llama, recurrent_gemma, mamba2\)",
    ),
    (
      lambda folder: changed_config(folder, vocab_size=300),
      "the tokenizer bytes has 259 ids, the weights in .* are for 300",
    ),
  ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(hugging_face, tmp_path, change, message):
  source, target = tmp_path / "source", tmp_path / "runs" / "target"
  shutil.copytree(hugging_face, source)
  change(source)
  with pytest.raises(UserError, match=message):
    convert.main([str(source), str(target), "--vocabulary=bytes"])
  assert not list(tmp_path.glob("runs/*"))
  assert not list(tmp_path.glob("runs/.*"))


class Words:
  """A corpus for a SentencePiece model."""

  name = "words"

  def documents(self, split):
    words = itertools.product(("ba", "ko", "mi", "ne", "su", "ta", "vor", "zel"), repeat=3)
    yield " ".join(map("".join, words)).encode()

  def total_bytes(self):
    return 4_000


def test_a_sentencepiece_model_is_taken_along_and_must_fit(hugging_face, tmp_path):
  source, run = tmp_path / "source", tmp_path / "run"
  shutil.copytree(hugging_face, source)
  train_sentencepiece(Words(), 300, source / "tokenizer.model")
  with pytest.raises(UserError, match=r"tokenizer\.model has 300 ids, .* are for 259"):
    convert.main([str(source), str(run)])
  with pytest.raises(UserError, match=r"no tokenizer\.model or tokenizer\.json in .* Give the"):
    convert.main([str(hugging_face), str(run)])
  assert not run.exists()
  changed(
    source,
    lambda t: t.update({"model.embed_tokens.weight": np.zeros((300, 32), np.float32)}),
  )
  changed_config(source, vocab_size=300)
  assert convert.main([str(source), str(run)]) == 0
  target = tmp_path / "target"
  assert convert.main([str(run), str(target)]) == 0
  expected = (source / "tokenizer.model").read_bytes()
  assert (run / "vocabulary.model").read_bytes() == expected
  assert (target / "tokenizer.model").read_bytes() == expected


def test_a_tokenizer_json_is_taken_along_and_given_back(hugging_face, tmp_path):
  source, run, target = tmp_path / "source", tmp_path / "run", tmp_path / "target"
  shutil.copytree(hugging_face, source)
  train_tokenizer_json(Words(), 270, source / "tokenizer.json")
  size = TokenizerJson(str(source)).size
  changed(
    source,
    lambda t: t.update({"model.embed_tokens.weight": np.zeros((size, 32), np.float32)}),
  )
  changed_config(source, vocab_size=size)
  assert convert.main([str(source), str(run)]) == 0
  assert convert.main([str(run), str(target)]) == 0
  for name in ("tokenizer.json", "tokenizer_config.json"):
    expected = (source / name).read_bytes()
    assert (run / name).read_bytes() == (target / name).read_bytes() == expected


@pytest.mark.parametrize(
  ("place", "message"),
  [("nothing", "no such folder"), ("empty", "is neither a run directory")],
)
def test_a_source_that_is_none_is_told(tmp_path, place, message):
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=message):
    convert.main([str(tmp_path / place), str(tmp_path / "run")])


def test_what_is_there_is_not_overwritten(hugging_face, run_dir):
  with pytest.raises(UserError, match="exists and is not empty"):
    convert.main([str(hugging_face), str(run_dir), "--vocabulary=bytes"])


def test_imported_weights_are_not_trained_in_their_own_directory(run_dir, monkeypatch):
  monkeypatch.setattr(
    "experiment.experiment.Experiment.rows", lambda self: pytest.fail("read text")
  )
  before = sorted(run_dir.rglob("*"))
  with pytest.raises(UserError, match="contains imported weights"):
    train.main([f"--run_dir={run_dir}"])
  assert sorted(run_dir.rglob("*")) == before


def test_a_model_that_lies_in_a_run_of_bytes_is_not_its_tokenizer(tmp_path, run_dir, capsys):
  copied = shutil.copytree(run_dir, tmp_path / "run")
  (copied / "vocabulary.model").write_bytes(b"another's")
  assert convert.main([str(copied), str(tmp_path / "target")]) == 0
  assert "this run reads bytes" in capsys.readouterr().out
  assert not (tmp_path / "target" / "tokenizer.model").exists()
