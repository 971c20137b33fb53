"""RecurrentGemma as Hugging Face stores it: its configuration and its tensors, to and from ours.

RecurrentGemma is Griffin with other options, so there is no model here, only names and layouts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from layers.attention import SelfAttention
from layers.recurrent_block import RecurrentBlock
from models.accounting import list_parameters
from models.backbone import Backbone
from models.griffin import griffin
from models.language_model import LanguageModel

# Tied to the embedding: files leave it out, state dicts repeat it.
_TIED = "lm_head.weight"
_PATTERN = ("recurrent", "recurrent", "attention")
# Settings that Griffin fixes; anything else would give other logits.
_FIXED = {
  "hidden_activation": "gelu_pytorch_tanh",
  "rms_norm_eps": 1e-6,
  "conv1d_width": 4,
  "attention_bias": False,
  "attention_dropout": 0.0,
  "embeddings_scale_by_sqrt_dim": True,
  "tie_word_embeddings": True,
}

# Our path within a block -> Hugging Face's, and how the array lies there:
#   same        as ours
#   transposed  [out, in] for our [in, out]
#   blocks      [N, R / N] for our [R]
#   taps        [R, 1, taps], the current token last, for our [taps, R], the current token first
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
  "embedding/embedding": "model.embed_tokens.weight",
  "final_norm/scale": "model.final_norm.weight",
}


class Counterpart(NamedTuple):
  """One tensor of Hugging Face's and where it lies in our parameters.

  Attributes:
    name: Hugging Face's name.
    shape: its shape there.
    path: our parameter's path, joined by slashes.
    repeat: the row of the stacked parameter that it fills; None where nothing is stacked.
    layout: how its axes relate to ours (see the table of this file).
  """

  name: str
  shape: tuple[int, ...]
  path: str
  repeat: int | None
  layout: str

  def to_ours(self, tensor: np.ndarray) -> np.ndarray:
    """Lays a tensor out as our parameter (or one row of it)."""
    match self.layout:
      case "transposed":
        return tensor.T
      case "blocks":
        return tensor.reshape(-1)
      case "taps":
        return tensor[:, 0, ::-1].T
    return tensor

  def to_hugging_face(self, parameter: np.ndarray) -> np.ndarray:
    """Lays our parameter (or one row of it) out as the tensor."""
    match self.layout:
      case "transposed":
        return parameter.T
      case "blocks":
        return parameter.reshape(self.shape)
      case "taps":
        return parameter[::-1].T[:, None]
    return parameter


def model_from_hugging_face(
  config: Mapping[str, Any], *, dtype: str = "float32", param_dtype: str = "float32"
) -> LanguageModel:
  """Builds the model that a Hugging Face configuration describes.

  Args:
    config: the contents of a config.json, or `RecurrentGemmaConfig.to_dict()`.
    dtype, param_dtype: types of the activations and of the stored parameters.

  Raises:
    ValueError: the configuration asks for what Griffin does not have.
  """
  _check_config(config)
  width, heads = config["hidden_size"], config["num_attention_heads"]
  rope = _rope(config)
  backbone = Backbone(
    vocab_size=config["vocab_size"],
    width=width,
    depth=config["num_hidden_layers"],
    # Hugging Face counts both branches of the gated MLP.
    mlp_expansion=config["intermediate_size"] // 2 // width,
    use_bias=True,
    zero_centered_norm=True,
    scale_embedding=True,
    logit_cap=config["logits_soft_cap"],
    dtype=dtype,
    param_dtype=param_dtype,
  )
  return griffin(
    backbone,
    rnn_width=config.get("lru_width") or width,
    heads=heads,
    kv_heads=config.get("num_key_value_heads") or heads,
    window=config["attention_window_size"],
    gate_blocks=heads,
    rotary_fraction=rope["partial_rotary_factor"],
  )


def name_table(model: LanguageModel) -> tuple[Counterpart, ...]:
  """All tensors of the model's Hugging Face form, from shapes alone.

  Raises:
    ValueError: the model is no RecurrentGemma: its tensors would mean something else there.
  """
  _check_options(model)
  parameters = {parameter.path: parameter.shape for parameter in list_parameters(model)}
  pattern = len(model.pattern)
  repeats = model.depth // pattern
  table = []
  for path, shape in parameters.items():
    if path in _OUTSIDE:
      table.append(Counterpart(_OUTSIDE[path], shape, path, None, "same"))
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
      table.append(Counterpart(name_here, shape, path, repeat if stacked else None, layout))
  return tuple(table)


def parameters_from_hugging_face(
  tensors: Mapping[str, np.ndarray], model: LanguageModel
) -> dict[str, Any]:
  """Our parameters from Hugging Face's tensors.

  Args:
    tensors: name -> array. Each is looked up once and not kept, so that the mapping may read files.
    model: as `model_from_hugging_face` builds it.

  Returns:
    the parameter tree, as numpy arrays in the model's types.

  Raises:
    ValueError: tensors are missing, left over or of a wrong shape; it names them.
  """
  table = name_table(model)
  _check_names(table, tensors)
  flat = {p.path: np.empty(p.shape, p.dtype) for p in list_parameters(model)}
  for entry in table:
    tensor = _checked(entry.name, tensors[entry.name], entry.shape)
    target = flat[entry.path] if entry.repeat is None else flat[entry.path][entry.repeat]
    target[...] = entry.to_ours(tensor)
  if _TIED in tensors and not np.array_equal(
    np.asarray(tensors[_TIED], flat["embedding/embedding"].dtype), flat["embedding/embedding"]
  ):
    raise ValueError(
      f"{_TIED} differs from model.embed_tokens.weight, but RecurrentGemma ties the two: "
      "these weights are of another model."
    )
  return _nest(flat)


def hugging_face_from_parameters(
  params: Mapping[str, Any], model: LanguageModel
) -> Iterator[tuple[str, np.ndarray]]:
  """Hugging Face's tensors from our parameters, one at a time.

  Args:
    params: the parameter tree, without boxes.
    model: as `model_from_hugging_face` builds it.

  Yields:
    name and array, in our parameters' type; `dict()` of it is a state dict. The output matrix, tied to
    the embedding, is left out as in Hugging Face's own files.

  Raises:
    ValueError: a parameter is missing or of a wrong shape; it names it.
  """
  shapes = {parameter.path: parameter.shape for parameter in list_parameters(model)}
  for entry in name_table(model):
    leaf = params
    for key in entry.path.split("/"):
      if key not in leaf:
        raise ValueError(f"parameter {entry.path} {shapes[entry.path]} is missing.")
      leaf = leaf[key]
    leaf = _checked(entry.path, leaf, shapes[entry.path])
    row = leaf if entry.repeat is None else leaf[entry.repeat]
    yield entry.name, np.ascontiguousarray(entry.to_hugging_face(row))


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
  """Rotary settings: a table of their own since transformers 5, plain keys before."""
  rope = {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "rope_type": "default"}
  rope |= {key: config[key] for key in rope if key in config}
  return rope | (config.get("rope_parameters") or {})


def _check_config(config: Mapping[str, Any]) -> None:
  rope = _rope(config)
  depth, width = config["num_hidden_layers"], config["hidden_size"]
  blocks = tuple(itertools.islice(itertools.cycle(config.get("block_types") or _PATTERN), depth))
  head_dim, heads = config.get("head_dim"), config["num_attention_heads"]
  rules = [
    (name, config.get(name, value), value, config.get(name, value) == value)
    for name, value in _FIXED.items()
  ]
  rules += [
    ("rope_theta", rope["rope_theta"], 10_000.0, rope["rope_theta"] == 10_000.0),
    ("rope_type", rope["rope_type"], "default", rope["rope_type"] == "default"),
    (
      "intermediate_size",
      config["intermediate_size"],
      f"a multiple of twice the width {width}",
      config["intermediate_size"] % (2 * width) == 0,
    ),
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
  wrong = [f"{name}={value!r}, must be {rule}" for name, value, rule, holds in rules if not holds]
  if wrong:
    raise ValueError(
      "this RecurrentGemma configuration asks for what Griffin does not have here: "
      + "; ".join(wrong)
      + "."
    )


def _check_options(model: LanguageModel) -> None:
  mixers = [mixer(parent=None) for mixer in model.pattern]
  if (
    [type(mixer) for mixer in mixers] != [RecurrentBlock, RecurrentBlock, SelfAttention]
    or mixers[0].gate_blocks != mixers[2].heads
    or not model.norm(parent=None).zero_centered
    or not model.mlp(parent=None).use_bias
    or model.logit_cap is None
    or model.embedding_scale == 1.0
  ):
    raise ValueError(
      "Hugging Face's RecurrentGemma cannot hold this model: it needs Griffin with biases, "
      "one gate block per head, zero-centred norms, a scaled embedding and capped logits. Build the model with "
      "gin/models/recurrent_gemma.gin or model_from_hugging_face."
    )


def _check_names(table: tuple[Counterpart, ...], tensors: Mapping[str, np.ndarray]) -> None:
  expected = {entry.name: entry.shape for entry in table}
  missing = [f"{name} {shape}" for name, shape in expected.items() if name not in tensors]
  extra = [name for name in tensors if name not in expected and name != _TIED]
  problems = []
  if missing:
    problems.append(f"{len(missing)} missing ({_listed(missing)})")
  if extra:
    shown = [f"{name} {np.shape(tensors[name])}" for name in extra[:_SHOWN]]
    problems.append(f"{len(extra)} without a place ({_listed(shown, len(extra))})")
  if problems:
    raise ValueError(
      f"these tensors are not this model's: {' and '.join(problems)}. Build the model from the "
      "configuration that the tensors came with."
    )


_SHOWN = 4


def _listed(items: list[str], total: int | None = None) -> str:
  rest = (total or len(items)) - len(items[:_SHOWN])
  return ", ".join(items[:_SHOWN]) + (f" and {rest} more" if rest else "")


def _checked(name: str, array: Any, shape: tuple[int, ...]) -> np.ndarray:
  array = np.asarray(array)
  if array.shape != shape:
    raise ValueError(f"{name} has shape {array.shape}, this model needs {shape}.")
  return array


def _nest(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, last = path.split("/")
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree
