"""Converts the tensors of DeepMind's Flax RecurrentGemma to ours.

The names are those of the package `recurrentgemma` (`recurrentgemma.jax.Griffin`). Settings that
its files lack (window, logit cap, scale of the embedding) are fixed for RecurrentGemma.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from conversion import recurrent_gemma, weight_map, weight_stream
from conversion.adapter import WeightsFormat
from conversion.recurrent_gemma_form import Form
from conversion.weight_map import WeightMapping
from models.accounting import list_parameters
from models.language_model import LanguageModel

# Our path within a block -> theirs, and how the array lies there (see `WeightMapping`).
_BLOCK = {
  "mixer_norm/scale": ("temporal_pre_norm/scale", "same"),
  "mixer/linear_x/kernel": ("recurrent_block/linear_x/kernel", "same"),
  "mixer/linear_x/bias": ("recurrent_block/linear_x/bias", "same"),
  "mixer/linear_y/kernel": ("recurrent_block/linear_y/kernel", "same"),
  "mixer/linear_y/bias": ("recurrent_block/linear_y/bias", "same"),
  "mixer/linear_out/kernel": ("recurrent_block/linear_out/kernel", "same"),
  "mixer/linear_out/bias": ("recurrent_block/linear_out/bias", "same"),
  "mixer/conv1d/kernel": ("recurrent_block/conv_1d/w", "reversed"),
  "mixer/conv1d/bias": ("recurrent_block/conv_1d/b", "same"),
  "mixer/rg_lru/a_param": ("recurrent_block/rg_lru/a_param", "same"),
  "mixer/rg_lru/gate_a/kernel": ("recurrent_block/rg_lru/a_gate/w", "same"),
  "mixer/rg_lru/gate_a/bias": ("recurrent_block/rg_lru/a_gate/b", "blocks"),
  "mixer/rg_lru/gate_x/kernel": ("recurrent_block/rg_lru/input_gate/w", "same"),
  "mixer/rg_lru/gate_x/bias": ("recurrent_block/rg_lru/input_gate/b", "blocks"),
  "mixer/query/kernel": ("attention_block/proj_q/kernel", "same"),
  "mixer/key/kernel": ("attention_block/proj_k/kernel", "same"),
  "mixer/value/kernel": ("attention_block/proj_v/kernel", "same"),
  "mixer/output/kernel": ("attention_block/proj_final/kernel", "same"),
  "mixer/output/bias": ("attention_block/proj_final/bias", "same"),
  "mlp_norm/scale": ("channel_pre_norm/scale", "same"),
  "mlp/gate/kernel": ("mlp_block/ffw_up/w", "part_0"),
  "mlp/gate/bias": ("mlp_block/ffw_up/b", "part_0"),
  "mlp/up/kernel": ("mlp_block/ffw_up/w", "part_1"),
  "mlp/up/bias": ("mlp_block/ffw_up/b", "part_1"),
  "mlp/down/kernel": ("mlp_block/ffw_down/kernel", "same"),
  "mlp/down/bias": ("mlp_block/ffw_down/bias", "same"),
}
_OUTSIDE = {
  "embedding/embedding": "embedder/input_embedding",
  "final_norm/scale": "final_norm/scale",
}

# DeepMind's window of 2048 does not count the token itself.
_WINDOW = 2049


def options_from_shapes(
  shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Derives the sizes of `Backbone` and of `griffin` from the tensors' shapes.

  Args:
    shapes: shapes by name, joined by slashes and without a leading 'params'.

  Raises:
    ValueError: these are not RecurrentGemma's tensors; the message names the missing one.
  """

  def shape(name: str, axes: int) -> tuple[int, ...]:
    if name not in shapes:
      raise ValueError(
        f"these are not RecurrentGemma's parameters: {name} is missing, there are "
        f"{', '.join(name[:60] for name in sorted(shapes)[:4])} and so on."
      )
    if len(shapes[name]) != axes or 0 in shapes[name]:
      raise ValueError(f"{name} has shape {shapes[name]}, it needs {axes} nonempty axes.")
    return shapes[name]

  vocab_size, width = shape("embedder/input_embedding", 2)
  numbers = {name.split("/")[0][7:] for name in shapes if name.startswith("blocks.")}
  if numbers != {str(number) for number in range(len(numbers))}:
    known = ", ".join(sorted(numbers)[:8])[:80]
    raise ValueError(f"the blocks are not numbered consecutively from 0: {known} and so on.")
  blocks, _, _ = shape("blocks.0/recurrent_block/rg_lru/a_gate/w", 3)
  hidden = shape("blocks.0/mlp_block/ffw_up/w", 3)[-1]
  (rnn_width,) = shape("blocks.0/recurrent_block/rg_lru/a_param", 1)
  if hidden % width:
    raise ValueError(
      f"blocks.0/mlp_block/ffw_up/w expands {width} channels to {hidden}, which is not a multiple."
    )
  backbone = {
    "vocab_size": vocab_size,
    "width": width,
    "depth": len(numbers),
    "mlp_expansion": hidden // width,
  }
  if rnn_width % blocks or width % blocks:
    raise ValueError(
      f"the {blocks} blocks of blocks.0/recurrent_block/rg_lru/a_gate/w do not divide the widths "
      f"{width} and "
      f"{rnn_width}."
    )
  return backbone, {"rnn_width": rnn_width, "heads": blocks, "window": _WINDOW}


def name_table(model: LanguageModel) -> tuple[WeightMapping, ...]:
  """Lists all tensors of the model's Flax form, from shapes.

  Raises:
    ValueError: RecurrentGemma's classes cannot hold the model exactly.
  """
  Form.of(model)
  ours = {parameter.path: parameter.shape for parameter in list_parameters(model)}
  pattern = len(model.pattern)
  repeats = model.depth // pattern
  table = []
  for path, shape in ours.items():
    if path in _OUTSIDE:
      table.append(weight_map.outside(_OUTSIDE[path], path, shape, model))
      continue
    _, group, block, rest = path.split("/", 3)
    name, layout = _BLOCK[rest]
    stacked = group == "repeats"
    shape = shape[1:] if stacked else shape
    if layout.startswith("part"):
      shape = (2, *shape) if len(shape) == 2 else (2, 1, 1, *shape)
    elif layout == "blocks":
      shape = ours[path.replace("bias", "kernel")][-3:-1]
    for repeat in range(repeats) if stacked else (repeats,):
      number = repeat * pattern + int(block.removeprefix("block_"))
      row = repeat if stacked else None
      table.append(WeightMapping(f"blocks.{number}/{name}", shape, path, row, layout))
  return tuple(table)


def stream_from_flax(
  tensors: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
  model: LanguageModel,
) -> Iterator[tuple[str, np.ndarray]]:
  """Converts Flax tensors to ours, like `conversion.recurrent_gemma.stream_from_hugging_face`.

  Args:
    tensors: arrays by name, joined by slashes and without a leading 'params'.
    shapes: shapes by the same names.
    model: a RecurrentGemma.

  Raises:
    ValueError: tensors are missing, unknown or of a wrong shape, or the model is another one; the
      message names them.
  """
  weight_map.check_readable(recurrent_gemma.name_table(model))
  table = name_table(model)
  weight_map.check(table, shapes)
  return weight_stream.parameters(tensors, table, model)


FILES = WeightsFormat(stream_from_flax, _OUTSIDE["embedding/embedding"])
