"""Exports models that no class of transformers holds exactly, with PyTorch code of their own.

The code, `conversion/modeling/modeling_griffin_jax.py`, is copied beside the weights. transformers
runs it with `trust_remote_code=True`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion import config_fields, weight_map
from conversion.adapter import Adapter, WeightsFormat
from conversion.weight_map import EMBEDDING, HEAD, WeightMapping
from layers import activations
from layers.attention import SelfAttention
from layers.cg_lru import CGLRU
from layers.mlp import GatedMLP
from layers.norm import RMSNorm
from layers.recurrent_block import RecurrentBlock
from layers.rg_lru import RGLRU
from models.language_model import LanguageModel

MODEL_TYPE = "griffin_jax"
CODE = Path(__file__).parent / "modeling" / "modeling_griffin_jax.py"
_CLASSES = {"AutoConfig": "GriffinJaxConfig", "AutoModelForCausalLM": "GriffinJaxForCausalLM"}
_RECURRENCES = {RGLRU: "rg_lru", CGLRU: "cg_lru"}
# Our path within a block -> the package's, and how the array lies there (see `WeightMapping`).
_BLOCK = {
  "mixer_norm/scale": ("mixer_norm.weight", "same"),
  "mlp_norm/scale": ("mlp_norm.weight", "same"),
  "mixer/conv1d/kernel": ("mixer.conv_1d.weight", "taps"),
  "mixer/conv1d/bias": ("mixer.conv_1d.bias", "same"),
}
_LINEAR = {
  "mixer/linear_x": "mixer.linear_x",
  "mixer/linear_y": "mixer.linear_y",
  "mixer/linear_out": "mixer.linear_out",
  "mixer/query": "mixer.q_proj",
  "mixer/key": "mixer.k_proj",
  "mixer/value": "mixer.v_proj",
  "mixer/output": "mixer.o_proj",
  "mlp/gate": "mlp.gate_proj",
  "mlp/up": "mlp.up_proj",
  "mlp/down": "mlp.down_proj",
}
for _ours, _theirs in _LINEAR.items():
  _BLOCK[f"{_ours}/kernel"] = (f"{_theirs}.weight", "transposed")
  _BLOCK[f"{_ours}/bias"] = (f"{_theirs}.bias", "same")
for _unit in _RECURRENCES.values():
  for _name in ("a_param", "phase_param", "gate_a/bias", "gate_x/bias"):
    _BLOCK[f"mixer/{_unit}/{_name}"] = (f"mixer.recurrence.{_name.replace('/', '.')}", "same")
  for _name in ("gate_a", "gate_x"):
    _BLOCK[f"mixer/{_unit}/{_name}/kernel"] = (f"mixer.recurrence.{_name}.weight", "same")
_OUTSIDE = {
  EMBEDDING: "embed_tokens.weight",
  HEAD: "lm_head.weight",
  "final_norm/scale": "final_norm.weight",
}


def check_model(model: LanguageModel) -> None:
  """Raises ValueError unless the package's code has all parts of a model."""
  mixers: list[Any] = [mixer(parent=None) for mixer in model.pattern]
  recurrent = [mixer for mixer in mixers if type(mixer) is RecurrentBlock]
  attending = [mixer for mixer in mixers if type(mixer) is SelfAttention]
  mlp: Any = model.mlp(parent=None) if model.mlp else None
  problems = []
  if len(recurrent) + len(attending) != len(mixers) or not all(
    _RECURRENCES.get(type(unit := block.recurrence(1, parent=None))) == unit.name
    for block in recurrent
  ):
    problems.append("its blocks are not all recurrent ones with RG-LRU or CG-LRU, or attention")
  if any(len({_without_recurrence(m) for m in kind}) > 1 for kind in (recurrent, attending)):
    problems.append("its blocks of one kind differ")
  if type(mlp) is not GatedMLP or type(model.norm(parent=None)) is not RMSNorm:
    problems.append("its blocks have no gated MLP, or other norms")
  else:
    names = {activations.name_of(mlp.gated), *(block.activation for block in recurrent)}
    if len(names) > 1 or None in names:
      problems.append("its activations differ, or are unknown")
    if any(block.use_bias != mlp.use_bias for block in recurrent):
      problems.append("recurrent blocks and MLPs do not both have biases")
  if problems:
    raise ValueError(
      f"the PyTorch code of exports lacks parts of this model: {'; '.join(problems[:3])}. Add "
      "a file beside conversion/griffin_package.py for it."
    )


def config_of(model: LanguageModel, **more: int) -> dict[str, Any]:
  """Makes the contents of a config.json for a model.

  Args:
    model: a model whose parts the package's code has.
    more: further entries, such as bos_token_id.

  Raises:
    ValueError: the code lacks parts of the model.
  """
  check_model(model)
  mixers: list[Any] = [mixer(parent=None) for mixer in model.pattern]
  recurrent = next((mixer for mixer in mixers if isinstance(mixer, RecurrentBlock)), None)
  attending = next((mixer for mixer in mixers if isinstance(mixer, SelfAttention)), None)
  assert model.mlp is not None  # checked by check_model
  mlp: Any = model.mlp(parent=None)
  norm: Any = model.norm(parent=None)
  config = {
    "architectures": ["GriffinJaxForCausalLM"],
    "model_type": MODEL_TYPE,
    "auto_map": {auto: f"{CODE.stem}.{own}" for auto, own in _CLASSES.items()},
    "vocab_size": model.vocab_size,
    "hidden_size": model.width,
    "num_hidden_layers": model.depth,
    "block_types": [_kind(mixer) for mixer in mixers],
    "activation": config_fields.their_activation(str(activations.name_of(mlp.gated))),
    "mlp_width": mlp.hidden,
    "use_bias": mlp.use_bias,
    "norm_epsilon": norm.epsilon,
    "zero_centered_norm": norm.zero_centered,
    "embedding_scale": model.embedding_scale,
    "tied_embedding": model.tied,
    "logit_cap": model.logit_cap,
    "dtype": str(np.dtype(model.param_dtype)),
    "torch_dtype": str(np.dtype(model.param_dtype)),
  }
  if recurrent is not None:
    config |= {name: getattr(recurrent, name) for name in ("rnn_width", "gate_blocks")}
    config["conv_width"] = recurrent.conv_width
  if attending is not None:
    scaling = attending.rotary_scaling
    config |= {
      "num_attention_heads": attending.heads,
      "num_key_value_heads": attending.kv_heads,
      "head_dim": attending.head_dim,
      "window": attending.window,
      "attention_input_bias": attending.use_input_bias,
      "attention_output_bias": attending.use_output_bias,
      "rotary_base": attending.rotary_base,
      "rotary_fraction": attending.rotary_fraction,
      "rotary_scaling": None if scaling is None else dataclasses.asdict(scaling),
    }
  return config | more


def name_table(model: LanguageModel) -> tuple[WeightMapping, ...]:
  """Lists all tensors of the model's exported form, from shapes.

  Raises:
    ValueError: the package's code lacks parts of the model.
  """
  check_model(model)
  table = [
    weight_map.outside(_OUTSIDE[path], path, shape, model)
    for path, shape in weight_map.outer_shapes(model).items()
  ]
  for place in weight_map.places(model):
    name, layout = _BLOCK[place.rest]
    shape = weight_map.their_shape(place.shape, layout)
    name = f"layers.{place.layer}.{name}"
    table.append(WeightMapping(name, shape, place.path, place.repeat, layout))
  return tuple(table)


def _kind(mixer: Any) -> str:
  if isinstance(mixer, SelfAttention):
    return "attention"
  return _RECURRENCES[type(mixer.recurrence(1, parent=None))]


def _without_recurrence(mixer: Any) -> Any:
  return mixer.clone(recurrence=None) if isinstance(mixer, RecurrentBlock) else mixer


def _refuse(config: Mapping[str, Any]):
  del config
  raise ValueError(
    f"model_type={MODEL_TYPE!r} is an export of this project, which is not read back. Give the run "
    "directory that it was exported from."
  )


def _no_stream(tensors, shapes, model):
  raise NotImplementedError  # `_refuse` comes first.


ADAPTER = Adapter(
  model_type=MODEL_TYPE,
  gin_file="",
  model="",
  macros={},
  set_by_gin_file=(),
  options=_refuse,
  files=WeightsFormat(_no_stream, ""),
  check_model=check_model,
  config=config_of,
  table=name_table,
  # bfloat16 would round the decays 0.999 and 0.995 to the same number.
  float32=("a_param", "phase_param"),
)
