"""Converts Hugging Face's RecurrentGemma, configuration and tensors, to and from ours.

RecurrentGemma is Griffin with other options, so this file has no model, only names and layouts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from base.ranges import FloatName
from conversion import recurrent_gemma_fields, weight_map
from conversion.adapter import Adapter, WeightsFormat
from conversion.weight_map import EMBEDDING, WeightMapping
from layers.attention import SelfAttention
from layers.recurrent_block import RecurrentBlock
from models.accounting import list_parameters
from models.backbone import Backbone
from models.griffin import griffin
from models.language_model import LanguageModel

MODEL_TYPE = "recurrent_gemma"
# Tied to the embedding: missing in files, repeated in state dicts.
TIED = "lm_head.weight"
_PATTERN = ("recurrent", "recurrent", "attention")
# Settings that are fixed in Griffin; other values would mean other logits.
_FIXED = {
  "hidden_activation": "gelu_pytorch_tanh",
  "rms_norm_eps": 1e-6,
  "conv1d_width": 4,
  "attention_bias": False,
  "attention_dropout": 0.0,
  "embeddings_scale_by_sqrt_dim": True,
  "tie_word_embeddings": True,
}

# Our path within a block -> Hugging Face's, and how the array lies there (see `WeightMapping`).
_BLOCK = {
  "mixer_norm/scale": ("temporal_pre_norm.weight", "same"),
  "mixer/linear_x/kernel": ("temporal_block.linear_x.weight", "transposed"),
  "mixer/linear_x/bias": ("temporal_block.linear_x.bias", "same"),
  "mixer/linear_y/kernel": ("temporal_block.linear_y.weight", "transposed"),
  "mixer/linear_y/bias": ("temporal_block.linear_y.bias", "same"),
  "mixer/linear_out/kernel": ("temporal_block.linear_out.weight", "transposed"),
  "mixer/linear_out/bias": ("temporal_block.linear_out.bias", "same"),
  "mixer/conv1d/kernel": ("temporal_block.conv_1d.weight", "taps"),
  "mixer/conv1d/bias": ("temporal_block.conv_1d.bias", "same"),
  "mixer/rg_lru/a_param": ("temporal_block.rg_lru.recurrent_param", "same"),
  "mixer/rg_lru/gate_a/kernel": ("temporal_block.rg_lru.recurrent_gate_weight", "same"),
  "mixer/rg_lru/gate_a/bias": ("temporal_block.rg_lru.recurrent_gate_bias", "blocks"),
  "mixer/rg_lru/gate_x/kernel": ("temporal_block.rg_lru.input_gate_weight", "same"),
  "mixer/rg_lru/gate_x/bias": ("temporal_block.rg_lru.input_gate_bias", "blocks"),
  "mixer/query/kernel": ("temporal_block.q_proj.weight", "transposed"),
  "mixer/key/kernel": ("temporal_block.k_proj.weight", "transposed"),
  "mixer/value/kernel": ("temporal_block.v_proj.weight", "transposed"),
  "mixer/output/kernel": ("temporal_block.o_proj.weight", "transposed"),
  "mixer/output/bias": ("temporal_block.o_proj.bias", "same"),
  "mlp_norm/scale": ("channel_pre_norm.weight", "same"),
  "mlp/gate/kernel": ("mlp_block.gate_proj.weight", "transposed"),
  "mlp/gate/bias": ("mlp_block.gate_proj.bias", "same"),
  "mlp/up/kernel": ("mlp_block.up_proj.weight", "transposed"),
  "mlp/up/bias": ("mlp_block.up_proj.bias", "same"),
  "mlp/down/kernel": ("mlp_block.down_proj.weight", "transposed"),
  "mlp/down/bias": ("mlp_block.down_proj.bias", "same"),
}
_OUTSIDE = {
  EMBEDDING: "model.embed_tokens.weight",
  "final_norm/scale": "model.final_norm.weight",
}


def options_from_hugging_face(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Converts a Hugging Face configuration to options of `Backbone` and of `griffin`.

  Args:
    config: the contents of a config.json, or `RecurrentGemmaConfig.to_dict()`.

  Raises:
    ValueError: it is of another architecture, or needs features that Griffin lacks.
  """
  _check_config(config)
  width, heads = config["hidden_size"], config["num_attention_heads"]
  backbone = {
    "vocab_size": config["vocab_size"],
    "width": width,
    "depth": config["num_hidden_layers"],
    # Hugging Face counts both branches of the gated MLP.
    "mlp_expansion": config["intermediate_size"] // 2 // width,
    "use_bias": True,
    "zero_centered_norm": True,
    "scale_embedding": True,
    "logit_cap": config["logits_soft_cap"],
  }
  mixers = {
    "rnn_width": config.get("lru_width") or width,
    "heads": heads,
    "kv_heads": config.get("num_key_value_heads") or heads,
    "window": config["attention_window_size"],
    "gate_blocks": heads,
    "rotary_fraction": _rope(config)["partial_rotary_factor"],
  }
  return backbone, mixers


def model_from_hugging_face(
  config: Mapping[str, Any], *, dtype: FloatName = "float32", param_dtype: FloatName = "float32"
) -> LanguageModel:
  """Builds the model of a Hugging Face configuration.

  Args:
    config: see `options_from_hugging_face`.
    dtype, param_dtype: dtypes of the activations and of the stored parameters.

  Raises:
    ValueError: see `options_from_hugging_face`.
  """
  backbone, mixers = options_from_hugging_face(config)
  return griffin(Backbone(**backbone, dtype=dtype, param_dtype=param_dtype), **mixers)


def hugging_face_config(model: LanguageModel, **tokens: int) -> dict[str, Any]:
  """Makes the contents of a model's config.json; inverts `options_from_hugging_face`.

  Args:
    model: a RecurrentGemma.
    tokens: bos_token_id, eos_token_id and pad_token_id of its tokenizer.

  Raises:
    ValueError: the model is not a RecurrentGemma.
  """
  check_options(model)
  mixers: list[Any] = [mixer(parent=None) for mixer in model.pattern]
  recurrent, attention = mixers[0], mixers[2]
  assert model.mlp is not None  # Checked by check_options.
  hidden = model.mlp(parent=None).hidden
  return {
    "architectures": ["RecurrentGemmaForCausalLM"],
    "model_type": MODEL_TYPE,
    **_FIXED,
    "vocab_size": model.vocab_size,
    "hidden_size": model.width,
    "num_hidden_layers": model.depth,
    "intermediate_size": 2 * hidden,
    "num_attention_heads": attention.heads,
    "num_key_value_heads": attention.kv_heads,
    "head_dim": attention.head_dim,
    "lru_width": recurrent.rnn_width,
    "attention_window_size": attention.window,
    "logits_soft_cap": model.logit_cap,
    "block_types": list(_PATTERN),
    # In both forms: a table since transformers 5, plain keys before.
    "rope_theta": attention.rotary_base,
    "partial_rotary_factor": attention.rotary_fraction,
    "rope_parameters": {
      "rope_type": "default",
      "rope_theta": attention.rotary_base,
      "partial_rotary_factor": attention.rotary_fraction,
    },
    "dtype": str(np.dtype(model.param_dtype)),
    "torch_dtype": str(np.dtype(model.param_dtype)),
    **tokens,
  }


def name_table(model: LanguageModel) -> tuple[WeightMapping, ...]:
  """Lists all tensors of the model's Hugging Face form, from shapes.

  Raises:
    ValueError: the model is not a RecurrentGemma: its tensors would have another meaning there.
  """
  check_options(model)
  parameters = {parameter.path: parameter.shape for parameter in list_parameters(model)}
  pattern = len(model.pattern)
  repeats = model.depth // pattern
  table = []
  for path, shape in parameters.items():
    if path in _OUTSIDE:
      table.append(weight_map.outside(_OUTSIDE[path], path, shape, model))
      continue
    _, group, block, rest = path.split("/", 3)
    name, layout = _BLOCK[rest]
    index = int(block.removeprefix("block_"))
    stacked = group == "repeats"
    if stacked:
      shape = shape[1:]
    if layout == "transposed":
      shape = shape[::-1]
    elif layout == "taps":
      shape = (shape[1], 1, shape[0])
    elif layout == "blocks":
      shape = parameters[path.replace("bias", "kernel")][-3:-1]
    for repeat in range(repeats) if stacked else (repeats,):
      layer = repeat * pattern + index
      name_here = f"model.layers.{layer}.{name}"
      table.append(WeightMapping(name_here, shape, path, repeat if stacked else None, layout))
  return tuple(table)


def stream_from_hugging_face(
  tensors: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
  model: LanguageModel,
) -> Iterator[tuple[str, np.ndarray]]:
  """Converts Hugging Face's tensors to our parameters, one after the other in tree order.

  Args:
    tensors: arrays by name. Each is looked up once and not kept, so that the mapping may read
      files.
    shapes: shapes by the same names.
    model: a model built by `model_from_hugging_face`.

  Yields:
    path and numpy array, in the model's dtypes.

  Raises:
    ValueError: tensors are missing, unknown or of a wrong shape, or the output matrix differs from
      the embedding; the message names them.
  """
  table = name_table(model)
  weight_map.check(table, shapes, optional=(TIED,))
  digests = {EMBEDDING: b""} if TIED in shapes else {}
  yield from weight_map.parameters(tensors, table, model, digests)
  # Last, so that only one of the two largest tensors is in memory.
  kind = np.dtype(model.param_dtype)
  if digests and digests[EMBEDDING] != weight_map.digest(tensors[TIED].astype(kind, copy=False)):
    raise ValueError(
      f"{TIED} differs from model.embed_tokens.weight, but RecurrentGemma ties the two: "
      "these weights are of another model."
    )


def parameters_from_hugging_face(
  tensors: Mapping[str, np.ndarray], model: LanguageModel
) -> dict[str, Any]:
  """Collects the tree of `stream_from_hugging_face`, from tensors in memory."""
  shapes = {name: np.shape(tensor) for name, tensor in tensors.items()}
  return weight_map.nest(stream_from_hugging_face(tensors, shapes, model))


def hugging_face_from_parameters(
  params: Mapping[str, Any], model: LanguageModel
) -> Iterator[tuple[str, np.ndarray]]:
  """Converts our parameters to Hugging Face's tensors, one at a time.

  Args:
    params: the parameter tree, without boxes.
    model: a model built by `model_from_hugging_face`.

  Yields:
    name and array, in our parameters' dtype; `dict()` of it is a state dict. The output matrix,
    tied to the embedding, is left out as in Hugging Face's files.

  Raises:
    ValueError: a parameter is missing or of a wrong shape; the message names it.
  """
  shapes = {parameter.path: parameter.shape for parameter in list_parameters(model)}
  for entry in name_table(model):
    array = weight_map.leaf(params, entry.path, shapes[entry.path])
    row = array if entry.repeat is None else array[entry.repeat]
    yield entry.name, np.ascontiguousarray(entry.to_theirs(row))


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the rotary settings: a table since transformers 5, plain keys before."""
  rope = {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "rope_type": "default"}
  rope |= {key: config[key] for key in rope if key in config}
  return rope | (config.get("rope_parameters") or {})


def _check_config(config: Mapping[str, Any]) -> None:
  if config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
    raise ValueError(
      f"this is a configuration of {recurrent_gemma_fields.short(config['model_type'])}, not of "
      f"{MODEL_TYPE!r}, the only supported architecture."
    )
  recurrent_gemma_fields.check_fields(config)
  rope = _rope(config)
  depth, width = config["num_hidden_layers"], config["hidden_size"]
  blocks = tuple(itertools.islice(itertools.cycle(config.get("block_types") or _PATTERN), depth))
  head_dim, heads = config.get("head_dim"), config["num_attention_heads"]
  rules = [
    (name, config.get(name, value), value, _same(config.get(name, value), value))
    for name, value in _FIXED.items()
  ]
  rules += [
    ("rope_theta", rope["rope_theta"], 10_000.0, rope["rope_theta"] == 10_000.0),
    ("rope_type", rope["rope_type"], "default", rope["rope_type"] == "default"),
    (
      "head_dim",
      head_dim,
      f"hidden_size / num_attention_heads = {width / heads:g}",
      head_dim in (None, width // heads),
    ),
    (
      "block_types",
      blocks,
      f"{_PATTERN} repeated",
      blocks == tuple(itertools.islice(itertools.cycle(_PATTERN), depth)),
    ),
  ]
  wrong = [
    f"{name}={recurrent_gemma_fields.short(value)}, must be {rule}"
    for name, value, rule, holds in rules
    if not holds
  ]
  if wrong:
    raise ValueError(
      "this RecurrentGemma configuration needs features that Griffin lacks here: "
      + "; ".join(wrong[:3])
      + "."
    )


def _same(value: Any, rule: Any) -> bool:
  """Whether a value equals the fixed one; True is not 1, but 1 is 1.0."""
  numbers = (int, float)
  alike = type(value) is type(rule) or (type(value) in numbers and type(rule) in numbers)
  return alike and value == rule


def check_options(model: LanguageModel) -> None:
  """Raises ValueError unless a model is a RecurrentGemma."""
  mixers: list[Any] = [mixer(parent=None) for mixer in model.pattern]
  if (
    [type(mixer) for mixer in mixers] != [RecurrentBlock, RecurrentBlock, SelfAttention]
    or mixers[0].gate_blocks != mixers[2].heads
    or not model.norm(parent=None).zero_centered
    or model.mlp is None
    or not model.mlp(parent=None).use_bias
    or model.logit_cap is None
    or model.embedding_scale == 1.0
  ):
    raise ValueError(
      "Hugging Face's RecurrentGemma cannot hold this model: it needs Griffin with biases, "
      "one gate block per head, zero-centred norms, a scaled embedding and capped logits. Build "
      "the model with gin/models/recurrent_gemma.gin."
    )


ADAPTER = Adapter(
  model_type=MODEL_TYPE,
  gin_file="models/recurrent_gemma.gin",
  model="models.griffin.griffin",
  set_by_gin_file=("gate_blocks",),
  options=options_from_hugging_face,
  files=WeightsFormat(stream_from_hugging_face, _OUTSIDE[EMBEDDING]),
  check_model=check_options,
  config=hugging_face_config,
  tensors=hugging_face_from_parameters,
)
