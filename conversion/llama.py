"""Converts Hugging Face's Llama, configuration and tensors, to and from ours.

The MQA Transformer is held by the same class, with one key/value head and another activation.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from conversion import config_fields, weight_map, weight_stream
from conversion.adapter import Adapter, WeightsFormat
from conversion.config_fields import Field
from conversion.weight_map import EMBEDDING, HEAD, WeightMapping
from layers import activations
from layers.attention import SelfAttention
from layers.mlp import GatedMLP
from layers.norm import RMSNorm
from layers.rotary import RotaryScaling
from models.language_model import LanguageModel

MODEL_TYPE = "llama"
_WHAT = "Llama"
_FIELDS = {
  "vocab_size": config_fields.VOCAB_SIZE,
  "hidden_size": config_fields.WIDTH,
  "num_hidden_layers": config_fields.LAYERS,
  "intermediate_size": config_fields.HIDDEN,
  "num_attention_heads": config_fields.HEADS,
  "num_key_value_heads": Field(int, 1, 10**4, needed=False),
  "head_dim": Field(int, 2, 10**5, needed=False),
  "rms_norm_eps": config_fields.EPSILON,
  "rope_theta": config_fields.ROTARY_BASE,
  "attention_dropout": Field(float, 0, 1, needed=False),
  "max_position_embeddings": Field(int, 1, 2**31 - 1, needed=False),
}
_FACTOR = Field(float, 1e-3, 1e6)
_SCALING = {
  "linear": {"factor": _FACTOR},
  "llama3": {
    "factor": _FACTOR,
    "low_freq_factor": Field(float, 1e-6, 1e6),
    "high_freq_factor": Field(float, 1e-6, 1e6),
    "original_max_position_embeddings": Field(int, 1, 2**31 - 1),
  },
}
# Our path within a block -> Hugging Face's, and how the array lies there (see `WeightMapping`).
_LINEAR = {
  "mixer/query": "self_attn.q_proj",
  "mixer/key": "self_attn.k_proj",
  "mixer/value": "self_attn.v_proj",
  "mixer/output": "self_attn.o_proj",
  "mlp/gate": "mlp.gate_proj",
  "mlp/up": "mlp.up_proj",
  "mlp/down": "mlp.down_proj",
}
_NORMS = {
  "mixer_norm/scale": "input_layernorm.weight",
  "mlp_norm/scale": "post_attention_layernorm.weight",
}
_FINAL_NORM = "final_norm/scale"
_OUTSIDE = {
  EMBEDDING: "model.embed_tokens.weight",
  HEAD: "lm_head.weight",
  _FINAL_NORM: "model.norm.weight",
}
_INVERSE_FREQUENCIES = "rotary_emb.inv_freq"


def options(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Converts a Hugging Face configuration to options of `Backbone` and of `models.llama.llama`.

  Args:
    config: the contents of a config.json, or `LlamaConfig.to_dict()`.

  Raises:
    ValueError: it is not valid, or needs features that our model lacks.
  """
  _check_config(config)
  given = functools.partial(config_fields.default, config)
  rope, heads = _rope(config), config["num_attention_heads"]
  backbone = {
    "vocab_size": config["vocab_size"],
    "width": config["hidden_size"],
    "depth": config["num_hidden_layers"],
    "mlp_width": config["intermediate_size"],
    "use_bias": given("mlp_bias", False),
    "tied": given("tie_word_embeddings", False),
    "norm_epsilon": given("rms_norm_eps", 1e-6),
  }
  mixers = {
    "heads": heads,
    "kv_heads": given("num_key_value_heads", heads),
    "head_dim": given("head_dim", config["hidden_size"] // heads),
    "rotary_base": rope["rope_theta"],
    "attention_bias": given("attention_bias", False),
    "activation": config_fields.our_activation(given("hidden_act", "silu")),
  }
  if rope["rope_type"] != "default":
    mixers["rotary_factor"] = rope["factor"]
  if rope["rope_type"] == "llama3" and rope["factor"] != 1.0:
    mixers |= {
      "rotary_original_length": rope["original_max_position_embeddings"],
      "rotary_low": rope["low_freq_factor"],
      "rotary_high": rope["high_freq_factor"],
    }
  return backbone, mixers


def config_of(model: LanguageModel, **more: int) -> dict[str, Any]:
  """Makes the contents of a config.json for a model.

  Args:
    model: a model that Llama's class can hold.
    more: further entries, such as bos_token_id and max_position_embeddings.

  Raises:
    ValueError: Llama's class cannot hold the model.
  """
  check_model(model)
  mixer, mlp = _mixer(model), _mlp(model)
  scaling, scaled = mixer.rotary_scaling, {}
  if scaling is not None:
    scaled = _scaled(scaling)
  rope = {"rope_type": "default", "rope_theta": mixer.rotary_base, **scaled}
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": MODEL_TYPE,
    "vocab_size": model.vocab_size,
    "hidden_size": model.width,
    "intermediate_size": mlp.hidden,
    "num_hidden_layers": model.depth,
    "num_attention_heads": mixer.heads,
    "num_key_value_heads": mixer.kv_heads,
    "head_dim": mixer.head_dim,
    "hidden_act": config_fields.their_activation(str(activations.name_of(mlp.gated))),
    "rms_norm_eps": model.norm(parent=None).epsilon,
    "attention_bias": mixer.use_input_bias or mixer.use_output_bias,
    "attention_dropout": 0.0,
    "mlp_bias": mlp.use_bias,
    "tie_word_embeddings": model.tied,
    # In both forms: a table since transformers 5, plain keys before.
    "rope_theta": mixer.rotary_base,
    **({"rope_scaling": scaled} if scaled else {}),
    "rope_parameters": rope,
    "dtype": str(np.dtype(model.param_dtype)),
    "torch_dtype": str(np.dtype(model.param_dtype)),
    **more,
  }


def name_table(model: LanguageModel) -> tuple[WeightMapping, ...]:
  """Lists all tensors of the model's Hugging Face form, from shapes.

  Raises:
    ValueError: Llama's class cannot hold the model.
  """
  check_model(model)
  centre = 1.0 if model.norm(parent=None).zero_centered else 0.0
  table = [
    weight_map.outside(_OUTSIDE[path], path, shape, model)._replace(
      offset=centre if path == _FINAL_NORM else 0.0
    )
    for path, shape in weight_map.outer_shapes(model).items()
  ]
  for place in weight_map.places(model):
    map_name, _, kind = place.rest.rpartition("/")
    layout, offset = "same", 0.0
    if place.rest in _NORMS:
      name, offset = _NORMS[place.rest], centre
    elif kind == "kernel":
      name, layout = f"{_LINEAR[map_name]}.weight", "transposed"
    else:
      name = f"{_LINEAR[map_name]}.bias"
    shape = weight_map.their_shape(place.shape, layout)
    name = f"model.layers.{place.layer}.{name}"
    table.append(WeightMapping(name, shape, place.path, place.repeat, layout, offset=offset))
  return (*table, *_zeros(model))


def _zeros(model: LanguageModel) -> Iterator[WeightMapping]:
  """Lists the biases that Llama's class has on all maps of the attention or on none."""
  mixer = _mixer(model)
  if mixer.use_input_bias == mixer.use_output_bias:
    return
  sizes = {"q_proj": mixer.heads * mixer.head_dim}
  sizes |= dict.fromkeys(("k_proj", "v_proj"), mixer.kv_heads * mixer.head_dim)
  if mixer.use_input_bias:
    sizes = {"o_proj": model.width}
  for layer in range(model.depth):
    for name, size in sizes.items():
      name = f"model.layers.{layer}.self_attn.{name}.bias"
      yield WeightMapping(name, (size,), "", None, "constant")


def stream(
  tensors: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
  model: LanguageModel,
) -> Iterator[tuple[str, np.ndarray]]:
  """Converts Hugging Face's tensors to our parameters; see `adapter.WeightsFormat`.

  Raises:
    ValueError: tensors are missing, unknown or of a wrong shape, or a tied output matrix differs
      from the embedding; the message names them.
  """
  table = name_table(model)
  # Files of old versions hold the rotary frequencies, which follow from the configuration.
  unused = [name for name in shapes if name.endswith(_INVERSE_FREQUENCIES)]
  if model.tied:
    unused.append(_OUTSIDE[HEAD])
  weight_map.check(table, shapes, optional=unused)
  yield from weight_stream.with_tied_head(tensors, table, model, _OUTSIDE[HEAD])


def check_model(model: LanguageModel) -> None:
  """Raises ValueError unless Llama's class can hold a model exactly; it says what it lacks."""
  mixers: list[Any] = [mixer(parent=None) for mixer in model.pattern]
  problems = []
  if not all(type(mixer) is SelfAttention for mixer in mixers) or len(set(mixers)) > 1:
    problems.append("its blocks are not all the same attention")
  elif mixers[0].window is not None:
    problems.append(f"its attention has a window ({mixers[0].window})")
  elif mixers[0].rotary_fraction != 1.0:
    problems.append(f"its rotary_fraction is {mixers[0].rotary_fraction}, not 1")
  elif model.width % mixers[0].heads or mixers[0].head_dim % 2:
    problems.append(
      f"its heads={mixers[0].heads} do not divide the width, or its head_dim={mixers[0].head_dim} "
      "is odd"
    )
  norm, mlp = model.norm(parent=None), model.mlp and model.mlp(parent=None)
  if type(mlp) is not GatedMLP or activations.name_of(mlp.gated) is None:
    problems.append("its blocks have no gated MLP with a known activation")
  if type(norm) is not RMSNorm:
    problems.append("it has other norms")
  elif norm.zero_centered and np.dtype(model.param_dtype) != np.float32:
    problems.append("its norms are stored around zero, in less than float32")
  if model.embedding_scale != 1.0:
    problems.append("its embedding is scaled")
  if model.logit_cap is not None:
    problems.append("its logits have a cap")
  if problems:
    raise ValueError(f"Hugging Face's Llama cannot hold this model: {'; '.join(problems[:3])}.")


def _mixer(model: LanguageModel) -> SelfAttention:
  mixer: Any = model.pattern[0](parent=None)
  return mixer


def _mlp(model: LanguageModel) -> GatedMLP:
  assert model.mlp is not None  # checked by check_model
  mlp: Any = model.mlp(parent=None)
  return mlp


def _scaled(scaling: RotaryScaling) -> dict[str, Any]:
  if scaling.original_length is None:
    return {"rope_type": "linear", "factor": float(scaling.factor)}
  return {
    "rope_type": "llama3",
    "factor": float(scaling.factor),
    "low_freq_factor": float(scaling.low),
    "high_freq_factor": float(scaling.high),
    "original_max_position_embeddings": scaling.original_length,
  }


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the rotary settings: a table since transformers 5, plain keys before."""
  rope: dict[str, Any] = {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
  rope |= {name: config[name] for name in rope if config.get(name) is not None}
  # As in transformers, the old name goes before the new one.
  table = config.get("rope_scaling") or config.get("rope_parameters") or {}
  rope |= {k: v for k, v in table.items() if v is not None}
  return rope | {"rope_type": rope.get("rope_type", rope.get("type", "default"))}


def _check_config(config: Mapping[str, Any]) -> None:
  tables = [name for name in ("rope_scaling", "rope_parameters") if config.get(name) is not None]
  wrong = [
    f"{name}={config_fields.short(config[name])}, must be an object"
    for name in tables
    if not isinstance(config[name], Mapping)
  ]
  wrong += config_fields.wrong_activation(config, "hidden_act", "silu")
  switches = ("attention_bias", "mlp_bias", "tie_word_embeddings")
  config_fields.check(config, _FIELDS, _WHAT, booleans=switches, also_wrong=tuple(wrong))
  rope = _rope(config)
  _check_scaling(rope, config_fields.default(config, "max_position_embeddings", 2048))
  width, heads = config["hidden_size"], config["num_attention_heads"]
  kv_heads = config_fields.default(config, "num_key_value_heads", heads)
  wrong = config_fields.indivisible(
    [
      ("hidden_size", width, "num_attention_heads", heads),
      ("num_attention_heads", heads, "num_key_value_heads", kv_heads),
    ]
  )
  head_dim = config_fields.default(config, "head_dim", width // heads)
  if head_dim % 2:
    wrong.append(f"head_dim={head_dim}, must be even (rotary positions turn pairs of channels)")
  wrong += config_fields.wrong_numbers(
    rope, {"rope_theta": config_fields.ROTARY_BASE}, "rope_parameters."
  )
  config_fields.refuse(wrong, _WHAT)


def _check_scaling(rope: Mapping[str, Any], length: int) -> None:
  kind = rope["rope_type"]
  lacking = []
  if kind == "dynamic":
    lacking.append(
      "rope_type='dynamic' changes the wavelengths with the length of a text. Without "
      f"rope_scaling in config.json the same weights give the same logits up to {length:,} tokens"
    )
  elif kind != "default" and (not isinstance(kind, str) or kind not in _SCALING):
    known = ", ".join(["default", *_SCALING])
    lacking.append(f"rope_type={config_fields.short(kind)}, must be one of {known}")
  elif rope["partial_rotary_factor"] != 1.0:
    factor = config_fields.short(rope["partial_rotary_factor"])
    lacking.append(f"partial_rotary_factor={factor}, must be 1 (as in transformers' Llama)")
  config_fields.refuse_features(lacking, _WHAT)
  if kind == "default":
    return
  wrong = config_fields.wrong_numbers(rope, _SCALING[kind], "rope_scaling.")
  if not wrong and kind == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
    wrong.append(
      f"rope_scaling.high_freq_factor={rope['high_freq_factor']}, must be above "
      f"low_freq_factor={rope['low_freq_factor']}"
    )
  config_fields.refuse(wrong, _WHAT)


ADAPTER = Adapter(
  model_type=MODEL_TYPE,
  gin_file="models/llama.gin",
  model="models.llama.llama",
  macros={"KV_HEADS": "kv_heads"},
  set_by_gin_file=(),
  options=options,
  files=WeightsFormat(stream, _OUTSIDE[EMBEDDING]),
  check_model=check_model,
  config=config_of,
  table=name_table,
)
