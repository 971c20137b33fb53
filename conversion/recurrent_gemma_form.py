"""What Hugging Face's RecurrentGemma class can hold of our models, and in which form.

The class always has biases, norms stored around zero, an embedding that is multiplied by the square
root of the width, logits with a cap, and as many gate blocks as heads. Models without these are
held exactly too: biases of zero; the norm's scale less one; a smaller embedding and, where it gives
the logits as well, a larger last norm; a cap beyond all logits; gate blocks joined with zeros.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from layers import activations
from layers.attention import SelfAttention
from layers.mlp import GatedMLP
from layers.norm import RMSNorm
from layers.recurrent_block import RecurrentBlock
from layers.rg_lru import RGLRU
from models.language_model import LanguageModel

# Without effect where no block is of the kind.
_WINDOW, _ROTARY_BASE, _CONV_WIDTH = 2048, 10_000.0, 4


class Form(NamedTuple):
  """Sizes and options of the class.

  Attributes:
    heads, kv_heads: query heads, which are also the gates' blocks, and key/value heads.
    rnn_width, conv_width, window, hidden: R, sizes of convolution, window and MLP.
    rotary_base, rotary_fraction, attention_bias, activation, epsilon: as in `models.griffin`.
    block_types: the pattern.
    gain: the factor on the embedded tokens that the class has and the model lacks.
  """

  heads: int
  kv_heads: int
  rnn_width: int
  conv_width: int
  window: int
  hidden: int
  rotary_base: float
  rotary_fraction: float
  attention_bias: bool
  activation: str
  epsilon: float
  block_types: tuple[str, ...]
  gain: float

  @staticmethod
  def of(model: LanguageModel) -> Form:
    """Finds the form of a model.

    Raises:
      ValueError: the class cannot hold the model exactly; the message says what it lacks.
    """
    mixers: list[Any] = [mixer(parent=None) for mixer in model.pattern]
    recurrent = [mixer for mixer in mixers if type(mixer) is RecurrentBlock]
    attending = [mixer for mixer in mixers if type(mixer) is SelfAttention]
    norm: Any = model.norm(parent=None)
    mlp: Any = model.mlp(parent=None) if model.mlp else None
    problems = _lacking(model, len(mixers), recurrent, attending, norm, mlp)
    if problems:
      raise ValueError(
        f"Hugging Face's RecurrentGemma cannot hold this model: {'; '.join(problems[:3])}."
      )
    blocks = recurrent[0].gate_blocks if recurrent else 1
    local: Any = attending[0] if attending else None
    return Form(
      heads=local.heads if local else blocks,
      kv_heads=local.kv_heads if local else 1,
      rnn_width=recurrent[0].rnn_width if recurrent else model.width,
      conv_width=recurrent[0].conv_width if recurrent else _CONV_WIDTH,
      window=local.window if local else _WINDOW,
      hidden=mlp.hidden,
      rotary_base=local.rotary_base if local else _ROTARY_BASE,
      rotary_fraction=local.rotary_fraction if local else 0.5,
      attention_bias=bool(local and local.use_input_bias),
      activation=str(activations.name_of(mlp.gated)),
      epsilon=norm.epsilon,
      block_types=tuple(
        "recurrent" if isinstance(mixer, RecurrentBlock) else "attention" for mixer in mixers
      ),
      gain=_their_scale(model) / model.embedding_scale,
    )


def _lacking(model, count, recurrent, attending, norm, mlp) -> list[str]:
  """Describes what a model has that the class lacks."""
  problems = []
  if len(recurrent) + len(attending) != count or not all(
    type(unit := block.recurrence(1, parent=None)) is RGLRU and unit.name == "rg_lru"
    for block in recurrent
  ):
    problems.append("its blocks are not all recurrent ones with RG-LRU or attention")
  if type(mlp) is not GatedMLP or type(norm) is not RMSNorm:
    return [*problems, "its blocks have no gated MLP, or other norms"]
  names = {activations.name_of(mlp.gated), *(block.activation for block in recurrent)}
  if len(names) > 1 or None in names:
    problems.append("its activations differ, or are unknown")
  if len(set(recurrent)) > 1 or len(set(attending)) > 1:
    problems.append("its blocks of one kind differ")
  if attending:
    problems += _of_attention(model, attending[0], recurrent)
  if np.dtype(model.param_dtype) != np.float32:
    gain = _their_scale(model) / model.embedding_scale
    if not norm.zero_centered or math.frexp(gain)[0] != 0.5:
      problems.append(
        f"its parameters are {np.dtype(model.param_dtype)}, in which norms or embedding would be "
        "rounded (train or convert it with param_dtype 'float32')"
      )
  return problems


def _of_attention(model, local, recurrent) -> list[str]:
  problems = []
  if local.window is None:
    problems.append("its attention is global")
  if local.head_dim != model.width // local.heads:
    problems.append(f"its head_dim={local.head_dim} is not width / heads")
  if local.head_dim % 2 and int(local.head_dim * local.rotary_fraction) == local.head_dim:
    problems.append(f"its head_dim={local.head_dim} is odd, and all channels carry positions")
  if local.rotary_scaling is not None:
    problems.append("its rotary wavelengths are scaled")
  blocks = recurrent[0].gate_blocks if recurrent else local.heads
  if blocks % local.heads:
    problems.append(
      f"its gate_blocks={blocks} are no multiple of its heads={local.heads} (train it with as many "
      "as heads)"
    )
  return problems


def _their_scale(model: LanguageModel) -> float:
  return float(jnp.sqrt(model.width).astype(jnp.bfloat16))
