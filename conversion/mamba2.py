"""Converts Hugging Face's Mamba-2, configuration and tensors, to and from ours.

Hugging Face joins what are separate parameters here: the projections to z, x, b, c and dt, and the
convolutions of x, b and c. Our b and c lie by group, then b and c; theirs by b and c, then groups.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from conversion import config_fields, weight_map, weight_stream
from conversion.adapter import Adapter, WeightsFormat
from conversion.config_fields import Field
from conversion.weight_map import EMBEDDING, HEAD, WeightMapping
from layers.mamba2 import Mamba2Mixer
from layers.norm import RMSNorm
from models.language_model import LanguageModel

MODEL_TYPE = "mamba2"
_WHAT = "Mamba-2"
_FIELDS = {
  "vocab_size": config_fields.VOCAB_SIZE,
  "hidden_size": config_fields.WIDTH,
  "num_hidden_layers": config_fields.LAYERS,
  "num_heads": config_fields.HEADS,
  "head_dim": Field(int, 1, 10**5),
  "state_size": Field(int, 1, 10**5),
  "expand": Field(float, 1e-3, 1e3, needed=False),
  "n_groups": Field(int, 1, 10**4, needed=False),
  "conv_kernel": config_fields.CONV_WIDTH,
  "chunk_size": Field(int, 1, 2**20, needed=False),
  "layer_norm_epsilon": config_fields.EPSILON,
}
_SWITCHES = ("use_bias", "use_conv_bias", "tie_word_embeddings", "residual_in_fp32")
# Our path within a block -> Hugging Face's, and how the array lies there (see `WeightMapping`).
_BLOCK = {
  "mixer_norm/scale": ("norm.weight", "same"),
  "mixer/a_log": ("mixer.A_log", "same"),
  "mixer/dt_bias": ("mixer.dt_bias", "same"),
  "mixer/skip": ("mixer.D", "same"),
  "mixer/norm/scale": ("mixer.norm.weight", "same"),
  "mixer/out/kernel": ("mixer.out_proj.weight", "transposed"),
  "mixer/out/bias": ("mixer.out_proj.bias", "same"),
}
# Parts of joined tensors.
_PARTS = {
  "kernel": ("mixer.in_proj.weight", "transposed"),
  "bias": ("mixer.in_proj.bias", "same"),
}
_CONVOLUTION = {
  "kernel": ("mixer.conv1d.weight", "taps"),
  "bias": ("mixer.conv1d.bias", "same"),
}
_FINAL_NORM = "final_norm/scale"
_OUTSIDE = {
  EMBEDDING: "backbone.embeddings.weight",
  HEAD: "lm_head.weight",
  _FINAL_NORM: "backbone.norm_f.weight",
}


def options(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Converts a Hugging Face configuration to options of `Backbone` and of `models.mamba2.mamba2`.

  Args:
    config: the contents of a config.json, or `Mamba2Config.to_dict()`.

  Raises:
    ValueError: it is not valid, or needs features that our model lacks.
  """
  _check_config(config)
  given = functools.partial(config_fields.default, config)
  layers = config["num_hidden_layers"]
  backbone = {
    "vocab_size": config["vocab_size"],
    "width": config["hidden_size"],
    "depth": (layers + 1) // 2,
    "tied": given("tie_word_embeddings", False),
    "norm_epsilon": given("layer_norm_epsilon", 1e-5),
  }
  mixers = {
    # Without effect beside Mamba-2's own.
    "heads": max(1, config["num_heads"] // 4),
    "mixer_heads": config["num_heads"],
    "head_dim": config["head_dim"],
    "layers": layers,
    "state_size": config["state_size"],
    "groups": given("n_groups", 8),
    "chunk": given("chunk_size", 256),
    "conv_width": given("conv_kernel", 4),
    "projection_bias": given("use_bias", False),
  }
  return backbone, mixers


def config_of(model: LanguageModel, **more: int) -> dict[str, Any]:
  """Makes the contents of a config.json for a model.

  Args:
    model: a model that Mamba-2's class can hold.
    more: further entries, such as bos_token_id.

  Raises:
    ValueError: Mamba-2's class cannot hold the model.
  """
  check_model(model)
  mixer = _mixer(model)
  expand = mixer.heads * mixer.head_dim // model.width
  more.pop("max_position_embeddings", None)
  return {
    "architectures": ["Mamba2ForCausalLM"],
    "model_type": MODEL_TYPE,
    "vocab_size": model.vocab_size,
    "hidden_size": model.width,
    "num_hidden_layers": model.depth,
    "num_heads": mixer.heads,
    "head_dim": mixer.head_dim,
    "expand": expand,
    "state_size": mixer.state_size,
    "n_groups": mixer.groups,
    "conv_kernel": mixer.conv_width,
    "chunk_size": mixer.chunk,
    "hidden_act": "silu",
    "layer_norm_epsilon": mixer.epsilon,
    "use_bias": mixer.use_bias,
    "use_conv_bias": True,
    "residual_in_fp32": False,
    "rms_norm": True,
    "time_step_rank": math.ceil(model.width / 16),
    "tie_word_embeddings": model.tied,
    "dtype": str(np.dtype(model.param_dtype)),
    "torch_dtype": str(np.dtype(model.param_dtype)),
    **more,
  }


def name_table(model: LanguageModel) -> tuple[WeightMapping, ...]:
  """Lists all tensors of the model's Hugging Face form, from shapes.

  Raises:
    ValueError: Mamba-2's class cannot hold the model.
  """
  check_model(model)
  mixer = _mixer(model)
  centre = 1.0 if model.norm(parent=None).zero_centered else 0.0
  table = [
    weight_map.outside(_OUTSIDE[path], path, shape, model)._replace(
      offset=centre if path == _FINAL_NORM else 0.0
    )
    for path, shape in weight_map.outer_shapes(model).items()
  ]
  channels, states = mixer.heads * mixer.head_dim, mixer.groups * mixer.state_size
  by_group = np.arange(2 * states).reshape(2, mixer.groups, -1).swapaxes(0, 1).reshape(-1)
  joined = {
    "z": np.arange(channels),
    "x": channels + np.arange(channels),
    "bc": 2 * channels + by_group,
    "dt": 2 * channels + 2 * states + np.arange(mixer.heads),
  }
  convolved = {"conv1d_x": np.arange(channels), "conv1d_bc": channels + by_group}
  for place in weight_map.places(model):
    _, _, part = place.rest.partition("/")
    part, _, kind = part.partition("/")
    rows, size = None, 0
    if part in joined:
      (name, layout), rows = _PARTS[kind], joined[part]
      size = sum(map(len, joined.values()))
    elif part in convolved:
      (name, layout), rows = _CONVOLUTION[kind], convolved[part]
      size = channels + 2 * states
    else:
      name, layout = _BLOCK[place.rest]
    shape = weight_map.their_shape(place.shape, layout)
    if rows is not None:
      shape = (size, *shape[1:])
    table.append(
      WeightMapping(
        f"backbone.layers.{place.layer}.{name}",
        shape,
        place.path,
        place.repeat,
        layout,
        rows,
        offset=centre if place.rest == "mixer_norm/scale" else 0.0,
      )
    )
  return tuple(table)


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
  biases = {f"backbone.layers.{layer}.mixer.conv1d.bias" for layer in range(model.depth)}
  table = name_table(model)
  if not biases & shapes.keys():  # use_conv_bias is false
    table = [
      entry._replace(name="", layout="absent") if entry.name in biases else entry for entry in table
    ]
  weight_map.check(table, shapes, optional=(_OUTSIDE[HEAD],) if model.tied else ())
  yield from weight_stream.with_tied_head(tensors, table, model, _OUTSIDE[HEAD])


def check_model(model: LanguageModel) -> None:
  """Raises ValueError unless Mamba-2's class can hold a model exactly; it says what it lacks."""
  mixers: list[Any] = [mixer(parent=None) for mixer in model.pattern]
  norm, problems = model.norm(parent=None), []
  if not all(type(mixer) is Mamba2Mixer for mixer in mixers) or len(set(mixers)) > 1:
    problems.append("its blocks are not all the same mixer of Mamba-2")
  elif mixers[0].heads * mixers[0].head_dim % model.width:
    problems.append(
      f"its {mixers[0].heads} heads of {mixers[0].head_dim} channels are no multiple of the width"
    )
  elif type(norm) is RMSNorm and norm.epsilon != mixers[0].epsilon:
    problems.append("its norms have several epsilons")
  if model.mlp is not None:
    problems.append("it has MLPs")
  if type(norm) is not RMSNorm:
    problems.append("it has other norms")
  elif norm.zero_centered and np.dtype(model.param_dtype) != np.float32:
    problems.append("its norms are stored around zero, in less than float32")
  if model.embedding_scale != 1.0:
    problems.append("its embedding is scaled")
  if model.logit_cap is not None:
    problems.append("its logits have a cap")
  if problems:
    raise ValueError(f"Hugging Face's Mamba-2 cannot hold this model: {'; '.join(problems[:3])}.")


def _mixer(model: LanguageModel) -> Mamba2Mixer:
  mixer: Any = model.pattern[0](parent=None)
  return mixer


def _check_config(config: Mapping[str, Any]) -> None:
  config_fields.check(config, _FIELDS, _WHAT, booleans=_SWITCHES)
  heads, groups = config["num_heads"], config_fields.default(config, "n_groups", 8)
  wrong = config_fields.indivisible([("num_heads", heads, "n_groups", groups)])
  inner = config["hidden_size"] * config_fields.default(config, "expand", 2)
  if inner != heads * config["head_dim"]:
    wrong.append(
      f"head_dim={config['head_dim']} times num_heads={heads}, must be expand times "
      f"hidden_size={inner:g}"
    )
  config_fields.refuse(wrong, _WHAT)
  lacking = []
  activation = config.get("hidden_act", "silu")
  if activation not in ("silu", "swish"):
    lacking.append(f"hidden_act={config_fields.short(activation)}, must be 'silu'")
  limit = config_fields.decoded(config.get("time_step_limit"))
  if limit is not None and not _is_unlimited(limit):
    lacking.append(
      f"time_step_limit={config_fields.short(limit)}, must be (0, inf) (transformers itself leaves "
      "the limit out when it decodes)"
    )
  config_fields.refuse_features(lacking, _WHAT)


def _is_unlimited(limit: Any) -> bool:
  return (
    isinstance(limit, list | tuple)
    and len(limit) == 2
    and all(isinstance(end, int | float) for end in limit)
    and limit[0] <= 0
    and limit[1] == math.inf
  )


ADAPTER = Adapter(
  model_type=MODEL_TYPE,
  gin_file="models/mamba2.gin",
  model="models.mamba2.mamba2",
  macros={"CHUNK": "chunk"},
  set_by_gin_file=(),
  options=options,
  files=WeightsFormat(stream, _OUTSIDE[EMBEDDING]),
  check_model=check_model,
  config=config_of,
  table=name_table,
)
