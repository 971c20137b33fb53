"""Converts Hugging Face's RecurrentGemma, configuration and tensors, to and from ours.

RecurrentGemma is Griffin with other options, so this file has no model, only names and layouts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from base.ranges import FloatName
from conversion import config_fields, weight_map, weight_stream
from conversion.adapter import Adapter, WeightsFormat
from conversion.config_fields import Field
from conversion.recurrent_gemma_form import Form
from conversion.weight_map import EMBEDDING, HEAD, WeightMapping
from layers.attention import SelfAttention
from layers.recurrent_block import RecurrentBlock
from models.backbone import Backbone
from models.griffin import griffin
from models.language_model import LanguageModel

MODEL_TYPE = "recurrent_gemma"
# Tied to the embedding: missing in files, repeated in state dicts.
TIED = "lm_head.weight"
_WHAT = "RecurrentGemma"
_KINDS = ("recurrent", "attention")
_PATTERN = ("recurrent", "recurrent", "attention")
# Settings that are fixed in transformers; other values would mean other logits.
_FIXED = {"embeddings_scale_by_sqrt_dim": True}
_FIELDS = {
  "vocab_size": config_fields.VOCAB_SIZE,
  "hidden_size": config_fields.WIDTH,
  "num_hidden_layers": config_fields.LAYERS,
  "intermediate_size": Field(int, 2, 10**7),
  "num_attention_heads": config_fields.HEADS,
  "attention_window_size": Field(int, 1, 2**31 - 1),
  "logits_soft_cap": Field(float, 1e-3, 1e12),
  "lru_width": Field(int, 1, 10**6, needed=False),
  "num_key_value_heads": Field(int, 1, 10**4, needed=False),
  "head_dim": Field(int, 1, 10**5, needed=False),
  "conv1d_width": config_fields.CONV_WIDTH,
  "rms_norm_eps": config_fields.EPSILON,
  "attention_dropout": Field(float, 0, 1, needed=False),
}
_ROTARY = {
  "rope_theta": config_fields.ROTARY_BASE,
  "partial_rotary_factor": Field(float, 1e-3, 1.0, needed=False),
}
# Bounds no logit of a float32 model: below 2^18, the tanh of x / 2^30 is x / 2^30.
_NO_CAP = 2.0**30

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
  "mixer/query/bias": ("temporal_block.q_proj.bias", "same"),
  "mixer/key/kernel": ("temporal_block.k_proj.weight", "transposed"),
  "mixer/key/bias": ("temporal_block.k_proj.bias", "same"),
  "mixer/value/kernel": ("temporal_block.v_proj.weight", "transposed"),
  "mixer/value/bias": ("temporal_block.v_proj.bias", "same"),
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
_FINAL_NORM = "final_norm/scale"
_OUTSIDE = {
  EMBEDDING: "model.embed_tokens.weight",
  HEAD: "lm_head.weight",
  _FINAL_NORM: "model.final_norm.weight",
}


def options_from_hugging_face(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Converts a Hugging Face configuration to options of `Backbone` and of `griffin`.

  Args:
    config: the contents of a config.json, or `RecurrentGemmaConfig.to_dict()`.

  Raises:
    ValueError: it is of another architecture, or transformers does not accept it either.
  """
  _check_config(config)
  given = functools.partial(config_fields.default, config)
  width, heads, rope = config["hidden_size"], config["num_attention_heads"], _rope(config)
  backbone = {
    "vocab_size": config["vocab_size"],
    "width": width,
    "depth": config["num_hidden_layers"],
    # Hugging Face counts both branches of the gated MLP.
    "mlp_width": config["intermediate_size"] // 2,
    "use_bias": True,
    "tied": given("tie_word_embeddings", True),
    "norm_epsilon": given("rms_norm_eps", 1e-6),
    "zero_centered_norm": True,
    "scale_embedding": True,
    "logit_cap": config["logits_soft_cap"],
  }
  mixers = {
    "rnn_width": given("lru_width", width),
    "heads": heads,
    "kv_heads": given("num_key_value_heads", heads),
    "window": config["attention_window_size"],
    "gate_blocks": heads,
    "head_dim": width // heads,
    "rotary_base": rope["rope_theta"],
    "rotary_fraction": rope["partial_rotary_factor"],
    "attention_bias": given("attention_bias", False),
    "conv_width": given("conv1d_width", 4),
    "activation": config_fields.our_activation(given("hidden_activation", "gelu_pytorch_tanh")),
    "pattern": tuple(given("block_types", _PATTERN)),
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


def hugging_face_config(model: LanguageModel, **more: int) -> dict[str, Any]:
  """Makes the contents of a config.json for a model; see `Form`.

  Args:
    model: a model that RecurrentGemma's class can hold.
    more: further entries, such as bos_token_id, eos_token_id and pad_token_id.

  Raises:
    ValueError: RecurrentGemma's class cannot hold the model.
  """
  form = Form.of(model)
  rope = {"rope_theta": form.rotary_base, "partial_rotary_factor": form.rotary_fraction}
  return {
    "architectures": ["RecurrentGemmaForCausalLM"],
    "model_type": MODEL_TYPE,
    **_FIXED,
    "attention_bias": form.attention_bias,
    "attention_dropout": 0.0,
    "conv1d_width": form.conv_width,
    "hidden_activation": config_fields.their_activation(form.activation),
    "rms_norm_eps": form.epsilon,
    "tie_word_embeddings": model.tied,
    "vocab_size": model.vocab_size,
    "hidden_size": model.width,
    "num_hidden_layers": model.depth,
    "intermediate_size": 2 * form.hidden,
    "num_attention_heads": form.heads,
    "num_key_value_heads": form.kv_heads,
    "head_dim": model.width // form.heads,
    "lru_width": form.rnn_width,
    "attention_window_size": form.window,
    "logits_soft_cap": model.logit_cap or _NO_CAP,
    "block_types": list(form.block_types),
    # In both forms: a table since transformers 5, plain keys before.
    **rope,
    "rope_parameters": {"rope_type": "default", **rope},
    "dtype": str(np.dtype(model.param_dtype)),
    "torch_dtype": str(np.dtype(model.param_dtype)),
    **more,
  }


def name_table(model: LanguageModel) -> tuple[WeightMapping, ...]:
  """Lists all tensors of the model's Hugging Face form, from shapes.

  Raises:
    ValueError: RecurrentGemma's class cannot hold the model.
  """
  form = Form.of(model)
  centre = 0.0 if model.norm(parent=None).zero_centered else -1.0
  table: list[WeightMapping] = []
  for path, shape in weight_map.outer_shapes(model).items():
    entry = weight_map.outside(_OUTSIDE[path], path, shape, model)
    if path == EMBEDDING:
      entry = entry._replace(scale=1 / form.gain)
    elif path == _FINAL_NORM:
      # The embedding that gives the logits too is smaller, which the last norm makes good.
      gain = form.gain if model.tied else 1.0
      entry = entry._replace(scale=gain, offset=gain * (1.0 + centre) - 1.0)
    table.append(entry)
  for place in weight_map.places(model):
    name, layout = _BLOCK[place.rest]
    shape = weight_map.their_shape(place.shape, layout)
    offset = centre if place.rest.endswith("norm/scale") else 0.0
    if place.rest.startswith("mixer/rg_lru/gate"):
      size = form.rnn_width // form.heads
      if layout == "same" and place.shape[0] != form.heads:
        layout = "joined"
      shape = (form.heads, size) if layout == "blocks" else (form.heads, size, size)
    name_here = f"model.layers.{place.layer}.{name}"
    table.append(WeightMapping(name_here, shape, place.path, place.repeat, layout, offset=offset))
  return (*table, *_zeros(model, form, {entry.name for entry in table}))


def _zeros(model: LanguageModel, form: Form, known: set[str]) -> Iterator[WeightMapping]:
  """Lists the biases of Hugging Face's class that the model lacks."""
  mixers = model.mixers()
  for layer, mixer in enumerate(mixers):
    biases = {"mlp_block.gate_proj": form.hidden, "mlp_block.up_proj": form.hidden}
    biases["mlp_block.down_proj"] = model.width
    if isinstance(mixer, RecurrentBlock):
      biases |= dict.fromkeys(
        ("temporal_block.linear_x", "temporal_block.linear_y"), form.rnn_width
      )
      biases["temporal_block.linear_out"] = model.width
    else:
      biases["temporal_block.o_proj"] = model.width
    for name, size in biases.items():
      full = f"model.layers.{layer}.{name}.bias"
      if full not in known:
        yield WeightMapping(full, (size,), "", None, "constant")


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
  weight_map.check(table, shapes, optional=(TIED,) if model.tied else ())
  yield from weight_stream.with_tied_head(tensors, table, model, TIED)


def parameters_from_hugging_face(
  tensors: Mapping[str, np.ndarray], model: LanguageModel
) -> dict[str, Any]:
  """Collects the tree of `stream_from_hugging_face`, from tensors in memory."""
  shapes = {name: np.shape(tensor) for name, tensor in tensors.items()}
  return weight_stream.nest(stream_from_hugging_face(tensors, shapes, model))


def hugging_face_from_parameters(
  params: Mapping[str, Any], model: LanguageModel
) -> Iterator[tuple[str, np.ndarray]]:
  """Converts our parameters to Hugging Face's tensors, one at a time.

  Args:
    params: the parameter tree, without boxes.
    model: a model that RecurrentGemma's class can hold.

  Yields:
    name and array, in our parameters' dtype; `dict()` of it is a state dict. The output matrix,
    tied to the embedding, is left out as in Hugging Face's files.

  Raises:
    ValueError: a parameter is missing or of a wrong shape; the message names it.
  """
  leaves = weight_stream.leaves(params, model)
  return weight_stream.tensors(leaves, name_table(model), np.dtype(model.param_dtype))


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the rotary settings: a table since transformers 5, plain keys before."""
  rope = {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "rope_type": "default"}
  rope |= {key: config[key] for key in rope if config.get(key) is not None}
  return rope | {k: v for k, v in (config.get("rope_parameters") or {}).items() if v is not None}


def _check_config(config: Mapping[str, Any]) -> None:
  if config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
    raise ValueError(
      f"this is a configuration of {config_fields.short(config['model_type'])}, not of "
      f"{MODEL_TYPE!r}."
    )
  config_fields.check(
    config,
    _FIELDS,
    _WHAT,
    booleans=("attention_bias", "tie_word_embeddings"),
    also_wrong=(
      *_wrong_in_rotary(config),
      *_wrong_in_blocks(config),
      *config_fields.wrong_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
    ),
  )
  width, heads = config["hidden_size"], config["num_attention_heads"]
  rnn_width = config.get("lru_width") or width
  kv_heads = config.get("num_key_value_heads") or heads
  wrong = config_fields.indivisible(
    [
      ("lru_width", rnn_width, "num_attention_heads", heads),
      ("num_attention_heads", heads, "num_key_value_heads", kv_heads),
    ]
  )
  if config.get("head_dim") not in (None, width // heads) or width < heads:
    wrong.append(
      f"head_dim={config_fields.short(config.get('head_dim'))}, must be hidden_size / "
      f"num_attention_heads={width // heads}"
    )
  config_fields.refuse(wrong, _WHAT)
  rope_type = _rope(config)["rope_type"]
  lacking = [
    f"{name}={config_fields.short(config[name])}, must be {value}"
    for name, value in _FIXED.items()
    if name in config and not config_fields.same(config[name], value)
  ]
  if rope_type != "default":
    lacking.append(
      f"rope_type={config_fields.short(rope_type)}, must be 'default' (as in transformers)"
    )
  config_fields.refuse_features(lacking, _WHAT)


def _wrong_in_rotary(config: Mapping[str, Any]) -> list[str]:
  nested = config.get("rope_parameters")
  if nested is not None and not isinstance(nested, Mapping):
    return [f"rope_parameters={config_fields.short(nested)}, must be an object"]
  wrong = config_fields.wrong_numbers(config, _ROTARY)
  return wrong + config_fields.wrong_numbers(nested or {}, _ROTARY, "rope_parameters.")


def _wrong_in_blocks(config: Mapping[str, Any]) -> list[str]:
  blocks = config.get("block_types")
  if blocks is None or (
    isinstance(blocks, list | tuple) and blocks and all(name in _KINDS for name in blocks)
  ):
    return []
  return [
    f"block_types={config_fields.short(blocks)}, must be a list of 'recurrent' and 'attention'"
  ]


def check_options(model: LanguageModel) -> None:
  """Raises ValueError unless RecurrentGemma's class can hold a model exactly; see `Form`."""
  Form.of(model)
  if not any(isinstance(mixer, SelfAttention) for mixer in model.mixers()):
    raise ValueError(
      "Hugging Face's RecurrentGemma does not generate with this model: it has no attention, of "
      "which transformers asks how many tokens there were."
    )


ADAPTER = Adapter(
  model_type=MODEL_TYPE,
  gin_file="models/recurrent_gemma.gin",
  model="models.griffin.griffin",
  set_by_gin_file=("gate_blocks",),
  macros={},
  options=options_from_hugging_face,
  files=WeightsFormat(stream_from_hugging_face, _OUTSIDE[EMBEDDING]),
  check_model=check_options,
  config=hugging_face_config,
  table=name_table,
)
