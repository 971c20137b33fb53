"""Damaged or malicious files of other programs: one line of error each, and no files are left."""

from __future__ import annotations

import json
import os
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from base.errors import UserError
from conversion import recurrent_gemma, recurrent_gemma_flax
from launch import convert

CONFIG = {
  "model_type": "recurrent_gemma",
  "vocab_size": 259,
  "hidden_size": 8,
  "num_hidden_layers": 3,
  "intermediate_size": 16,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "attention_window_size": 4,
  "lru_width": 8,
  "head_dim": 4,
  "logits_soft_cap": 30.0,
  "block_types": ["recurrent", "recurrent", "attention"],
  "partial_rotary_factor": 0.5,
  "rope_theta": 10000.0,
}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
  """A folder that is converted."""
  folder = tmp_path_factory.mktemp("foreign") / "good"
  folder.mkdir()
  model = recurrent_gemma.model_from_hugging_face(CONFIG)
  tensors = {e.name: np.full(e.shape, 0.1, np.float32) for e in recurrent_gemma.name_table(model)}
  save_file(tensors, folder / WEIGHTS)
  (folder / "config.json").write_text(json.dumps(CONFIG))
  return folder


def told(source, target, capsys=None):
  """Returns the single line of error of a conversion, as `command.run` prints it."""
  arguments = [str(source), str(target), "--vocabulary=bytes"]
  try:
    convert.main(arguments)
  except Exception as error:
    assert isinstance(error, UserError), repr(error)  # noqa: PT017
    line = f"error: {error}"
    assert "\n" not in line
    assert len(line) < 500
    assert not target.exists()
    assert not list(target.parent.glob(".*"))
    return line
  pytest.fail("it was taken")


def test_the_good_folder_is_taken(good, tmp_path):
  assert convert.main([str(good), str(tmp_path / "run"), "--vocabulary=bytes"]) == 0


NUMBERS = [name for name in CONFIG if name not in ("model_type", "block_types")]
VALUES = {
  "null": None,
  "text": "8",
  "negative": -8,
  "zero": 0,
  "list": [8],
  "object": {"a": 8},
  "NaN": float("nan"),
  "infinite": float("inf"),
  "bool": True,
  "huge": 10**300,
  "fraction": 2.5,
  "long text": "8" * 10_000,
}
MAY_BE_NULL = (
  "num_key_value_heads",
  "lru_width",
  "head_dim",
  "partial_rotary_factor",
  "rope_theta",
)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_is_none_is_named(good, tmp_path, name, value):
  if value == "null" and name in MAY_BE_NULL:
    pytest.skip("it may be absent")
  if (name, value) in (("logits_soft_cap", "fraction"), ("rope_theta", "fraction")):
    pytest.skip("it may be 2.5")
  source = shutil.copytree(good, tmp_path / "source")
  (source / "config.json").write_text(json.dumps(CONFIG | {name: VALUES[value]}))
  line = told(source, tmp_path / "run")
  assert name in line


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"num_hidden_layers": 10_000}, "has at least"),
    ({"vocab_size": 10_000_000}, "has at least"),
    ({"hidden_size": 100_000, "head_dim": None, "intermediate_size": 200_000}, "has at least"),
    ({"head_dim": 5}, "head_dim=5, must be hidden_size / num_attention_heads=4"),
    ({"lru_width": 7}, "lru_width=7, must be a multiple"),
    ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads=3"),
    ({"block_types": "recurrent"}, "block_types"),
    ({"block_types": [1]}, "block_types"),
    ({"block_types": ["attention", "mamba"]}, "block_types"),
    ({"rope_parameters": [1]}, "rope_parameters"),
    ({"rope_parameters": {"rope_theta": "x"}}, "rope_parameters.rope_theta"),
    ({"rope_parameters": {"partial_rotary_factor": 3}}, "partial_rotary_factor"),
    ({"hidden_activation": ["x" * 9999]}, "hidden_activation"),
    ({"attention_bias": 0}, "attention_bias=0, must be true or false"),
    ({"conv1d_width": True}, "conv1d_width=True"),
    ({"rms_norm_eps": -1}, "rms_norm_eps"),
    ({"model_type": ["llama"]}, "model_type=['llama'] is not supported"),
    ({"model_type": "griffin_jax"}, "is an export of this project, which is not read back"),
    ({"model_type": "x" * 9999}, "is not supported"),
  ],
  ids=lambda value: str(value)[:60],
)
def test_a_configuration_that_does_not_fit_is_named(good, tmp_path, change, message):
  source = shutil.copytree(good, tmp_path / "source")
  (source / "config.json").write_text(json.dumps(CONFIG | change))
  assert message in told(source, tmp_path / "run")


@pytest.mark.parametrize(
  "text",
  [b"", b"[]", b"null", b"[[1, 2]]", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b'{"a": 1}'],
  ids=lambda text: repr(text[:8]),
)
@pytest.mark.parametrize("file", ["config.json", INDEX])
def test_json_that_is_none_is_named(good, tmp_path, file, text):
  source = shutil.copytree(good, tmp_path / "source")
  (source / file).write_bytes(text)
  assert file in told(source, tmp_path / "run") or text == b'{"a": 1}'


@pytest.mark.parametrize(
  "name",
  [
    "../good/model.safetensors",
    "/etc/passwd",
    "..",
    "",
    "a/b.safetensors",
    "model.bin",
    "x\0.safetensors",
    "absent.safetensors",
    7,
    None,
    ["model.safetensors"],
    "x" * 9999,
  ],
  ids=lambda name: str(name)[:20].replace("\0", "0"),
)
def test_an_index_names_files_of_its_folder(good, tmp_path, name):
  source = shutil.copytree(good, tmp_path / "source")
  (source / INDEX).write_text(json.dumps({"weight_map": {EMBEDDING: name}}))
  assert ".safetensors" in told(source, tmp_path / "run")


def head_of(file):
  data = file.read_bytes()
  (length,) = struct.unpack("<Q", data[:8])
  return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_head(head, arrays):
  text = head if isinstance(head, bytes) else json.dumps(head).encode()
  return struct.pack("<Q", len(text)) + text + arrays


def changed(**values):
  def change(head, arrays):
    head[EMBEDDING] |= values
    return with_head(head, arrays)

  return change


def duplicated(head, arrays):
  text = json.dumps(head)
  return with_head(("{" + text[1:-1] + "," + text[1:]).encode(), arrays)


def overlapping(head, arrays):
  first, second = list(head)[:2]
  head[second]["data_offsets"] = head[first]["data_offsets"]
  head[second]["shape"] = head[first]["shape"]
  return with_head(head, arrays)


HEADS = {
  "empty": lambda head, arrays: b"",
  "seven bytes": lambda head, arrays: b"\0" * 7,
  "huge length": lambda head, arrays: struct.pack("<Q", 2**63) + b"{}",
  "length beyond the file": lambda head, arrays: struct.pack("<Q", 10**8) + b"{}",
  "no JSON": lambda head, arrays: with_head(b"hello", arrays),
  "no UTF-8": lambda head, arrays: with_head(b'{"\xff": 1}', arrays),
  "a list": lambda head, arrays: with_head([], arrays),
  "nested": lambda head, arrays: with_head(b"[" * 100_000, arrays),
  "an entry that is a number": lambda head, arrays: with_head(head | {EMBEDDING: 1}, arrays),
  "an entry without offsets": lambda head, arrays: with_head(
    head | {EMBEDDING: {"dtype": "F32", "shape": []}}, arrays
  ),
  "names twice": duplicated,
  "overlap": overlapping,
  "cut short": lambda head, arrays: with_head(head, arrays[:-5]),
  "too long": lambda head, arrays: with_head(head, arrays + b"more"),
  "unknown type": changed(dtype="F7"),
  "a type that is a list": changed(dtype=["F32"]),
  "another type": changed(dtype="F64"),
  "a shape of text": changed(shape="abc"),
  "a negative shape": changed(shape=[-259, -8]),
  "a shape of fractions": changed(shape=[259.0, 8]),
  "a shape of bools": changed(shape=[True, 8]),
  "a huge shape": changed(shape=[2**62, 2**62]),
  "offsets outside": changed(data_offsets=[0, 10**15]),
  "offsets reversed": changed(data_offsets=[8288, 0]),
  "offsets negative": changed(data_offsets=[-8, 8280]),
  "offsets of text": changed(data_offsets="ab"),
  "three offsets": changed(data_offsets=[0, 1, 2]),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_head_that_is_wrong_is_told(good, tmp_path, case):
  source = shutil.copytree(good, tmp_path / "source")
  (source / WEIGHTS).write_bytes(HEADS[case](*head_of(source / WEIGHTS)))
  assert f"{WEIGHTS} is damaged" in told(source, tmp_path / "run")


def tensors_with(good, name, change):
  tensors = load_file(good / WEIGHTS)
  tensors[name] = change(tensors[name])
  return tensors


def with_value(value, kind=np.float32):
  def change(array):
    array = array.astype(kind)
    array.reshape(-1)[-1] = value
    return array

  return change


NORM = "model.layers.1.temporal_pre_norm.weight"


@pytest.mark.parametrize("name", [EMBEDDING, NORM, "model.layers.2.mlp_block.down_proj.weight"])
@pytest.mark.parametrize(
  "change",
  [
    with_value(np.nan),
    with_value(-np.inf),
    with_value(np.nan, np.float16),
    with_value(np.inf, ml_dtypes.bfloat16),
    with_value(1e300, np.float64),
    with_value(10**9, np.int32),
    with_value(3, np.int8),
    with_value(1, np.bool_),
    lambda array: array[..., :-1].copy(),
    lambda array: array[None].copy(),
    lambda array: array[:0].copy(),
  ],
  ids=[
    "NaN",
    "-inf",
    "NaN16",
    "infbf16",
    "1e300",
    "int32",
    "int8",
    "bool",
    "shape",
    "axes",
    "empty",
  ],
)
def test_a_tensor_that_is_no_weight_is_named(good, tmp_path, name, change):
  source = shutil.copytree(good, tmp_path / "source")
  save_file(tensors_with(good, name, change), source / WEIGHTS)
  line = told(source, tmp_path / "run")
  assert name in line or "has at least" in line


def test_a_tensor_in_two_files_is_told(good, tmp_path):
  source = shutil.copytree(good, tmp_path / "source")
  shutil.copy(source / WEIGHTS, source / "second.safetensors")
  names = list(load_file(source / WEIGHTS))
  placed = {name: WEIGHTS if n else "second.safetensors" for n, name in enumerate(names)}
  (source / INDEX).write_text(json.dumps({"weight_map": placed}))
  assert "both contain" in told(source, tmp_path / "run")


def test_a_tokenizer_that_is_none_is_told(good, tmp_path):
  source = shutil.copytree(good, tmp_path / "source")
  for content in (b"", b"hello", os.urandom(1000), b"\x0a\xff\xff\xff\xff\x0f"):
    (source / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer.model is not a SentencePiece model"):
      convert.main([str(source), str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def orbax(tmp_path_factory):
  """DeepMind's layout with the names of a small model."""
  import orbax.checkpoint as ocp

  model = recurrent_gemma.model_from_hugging_face(CONFIG)
  tree = {}
  for entry in recurrent_gemma_flax.name_table(model):
    *parents, last = entry.name.split("/")
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = np.full(entry.shape, 0.1, np.float32)
  folder = tmp_path_factory.mktemp("orbax") / "good"
  ocp.PyTreeCheckpointer().save(folder, {"params": tree})
  return folder


def test_the_good_checkpoint_is_taken(orbax, tmp_path):
  assert convert.main([str(orbax), str(tmp_path / "run"), "--vocabulary=bytes"]) == 0


def test_options_in_which_the_tensors_mean_something_else_are_refused(orbax, tmp_path):
  arguments = [str(orbax), str(tmp_path / "run"), "--vocabulary=bytes"]
  with pytest.raises(UserError, match="the model has other options than the weights were made for"):
    convert.main([*arguments, "--gin.backbone.Backbone.scale_embedding=False"])
  assert not list(tmp_path.iterdir())


def test_a_tokenizer_above_the_folder_is_named_by_its_place(orbax, tmp_path, monkeypatch):
  from launch import vocabulary

  monkeypatch.chdir(tmp_path)
  shutil.copytree(orbax, tmp_path / "published" / "2b")
  (tmp_path / "text.txt").write_text("the griffin has the body of a lion\n" * 50)
  vocabulary.main(["--input=text.txt", "--size=300", "--output=published/tokenizer.model"])
  with pytest.raises(UserError) as caught:
    convert.main(["published/2b", "run"])
  assert str(caught.value).startswith("the tokenizer published/tokenizer.model has 300 ids, the ")
  assert "the weights in published/2b are for 259." in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[[", b"\xff" * 64], ids=repr)
@pytest.mark.parametrize("file", ["_METADATA", "manifest.ocdbt", "d"])
def test_metadata_and_data_that_are_damaged_are_told(orbax, tmp_path, file, content):
  source = shutil.copytree(orbax, tmp_path / "source")
  for path in [source / file] if file != "d" else sorted((source / "d").iterdir()):
    path.write_bytes(content)
  told(source, tmp_path / "run")


@pytest.mark.parametrize(
  "shapes",
  [
    {},
    {"embedder/input_embedding": (259,)},
    {"embedder/input_embedding": (0, 8)},
    {"blocks.x/a": (1,)},
    {"blocks.999999999/a": (1,)},
    {"blocks.7/a": (1,)},
    {"blocks.0/recurrent_block/rg_lru/a_gate/w": (2, 4)},
    {"blocks.0/recurrent_block/rg_lru/a_gate/w": (3, 4, 4)},
    {"blocks.0/mlp_block/ffw_up/w": ()},
    {"blocks.0/mlp_block/ffw_up/w": (2, 8, 9)},
    {"blocks.0/recurrent_block/rg_lru/a_param": (8, 1)},
  ],
  ids=str,
)
def test_shapes_of_another_model_are_named(shapes):
  model = recurrent_gemma.model_from_hugging_face(CONFIG)
  good = {entry.name: entry.shape for entry in recurrent_gemma_flax.name_table(model)}
  with pytest.raises(ValueError, match=r".") as error:
    recurrent_gemma_flax.options_from_shapes(good | shapes if shapes else {})
  assert len(str(error.value)) < 400
