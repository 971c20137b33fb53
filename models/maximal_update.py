"""Maximal update parametrization (muP): the best rate of a narrow model holds for wide ones.

Yang and Hu 2021 (arXiv 2011.14522) and Yang et al. 2022 (arXiv 2203.03466, tables 3 and 8), for
optimizers such as Adam, whose updates of an entry are of the learning rate's size whatever the
gradient's. A model is scaled from a base, which has other widths and is trained as without muP.
With m = width / base width:

- A map whose fan-in grows m-fold starts with m times smaller variance, as everywhere here, and
  learns at 1/m of the rate: its update meets m times as many inputs that it is aligned with.
- The embedding starts with the base's variance and learns at the full rate. Its tokens have the
  base's factor, where they have one that grows with the width (RecurrentGemma). As output matrix it
  has m times as many inputs too, and gives logits that are multiplied by 1/m instead.
- Vectors (norms, biases, taps of convolutions) have a fan-in of their own, and stay as they are.

The recurrences need nothing else. The RG-LRU (Griffin, equations 1 to 4) works channel by channel:
its decay `a_param` is a vector, so that the memory of a channel moves by the rate's size at any
width. Its gates are block-diagonal maps of fan-in R / blocks: with a fixed number of blocks the
fan-in grows and the rate shrinks, with blocks of a fixed size neither does. The gates' inputs and
the state are of order one per channel at any width, as sqrt(1 - a^2) keeps the state's variance at
the input's. The matrix states of the other mixers are of heads, whose width muP here keeps: more
heads, not wider ones, so that the scores' factor 1/sqrt(head width) may stay too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models import lora
from models.accounting import ModelError, list_parameters
from models.language_model import LanguageModel

_HEAD_WIDTHS = ("head_dim", "key_dim", "value_dim", "qk_dim", "v_dim", "state_dim", "state_size")


def scaled(model: LanguageModel, base: LanguageModel) -> LanguageModel:
  """Returns the model with the embedding and the logits of muP.

  Args:
    model: the model.
    base: the same model at the widths from which it is scaled.

  Raises:
    ModelError: the models differ in more than widths.
  """
  _require_alike(model, base)
  return model.clone(
    logit_factor=base.width / model.width,
    embedding_fan_in=base.width,
    embedding_scale=base.embedding_scale,
  )


def rate_factors(model: LanguageModel, base: LanguageModel) -> tuple[tuple[str, float], ...]:
  """Returns the factors of the learning rate: base fan-in / fan-in, of linear maps within blocks.

  Args:
    model, base: as for `scaled`.

  Raises:
    ModelError: the models differ in more than widths.
  """
  _require_alike(model, base)
  shapes = {parameter.path: parameter.shape for parameter in list_parameters(base)}
  found = []
  for parameter in list_parameters(model):
    *_, module, name = parameter.path.split("/")
    # Every kernel is [..., inputs, outputs]; the taps of a convolution are as many at any width.
    # Of an adapter A B, A has the inputs of the map, and B as many as the rank at any width.
    if name in ("kernel", lora.A) and module != "head":
      factor = shapes[parameter.path][-2] / parameter.shape[-2]
      if factor != 1:
        found.append((parameter.path, factor))
  return tuple(found)


def folded(model: LanguageModel) -> tuple[LanguageModel, Callable[[str, Any], Any]]:
  """Returns a model without muP's factor of the logits, and what makes its parameters.

  The factor goes into the last norm's scale, so that formats without such a factor hold the model.

  Returns:
    the model, and a function of the path and the array of a parameter that gives the array there.
  """
  factor = model.logit_factor
  stored = 1 if getattr(model.norm(parent=None), "zero_centered", False) else 0

  def fold(path: str, array: Any) -> Any:
    if factor == 1.0 or path != "final_norm/scale":
      return array
    # In float32: a number near -1 has few digits of its difference from -1 in bfloat16.
    return ((array.astype("float32") + stored) * factor - stored).astype(array.dtype)

  return model.clone(logit_factor=1.0, embedding_fan_in=None), fold


def _require_alike(model: LanguageModel, base: LanguageModel) -> None:
  """Raises ModelError if the models have other parameters, or heads of other widths."""
  only = "MUP_BASE may set widths and numbers of heads, no depth and no pattern."
  # Blocks in a scan are one parameter at any depth.
  if model.depth != base.depth:
    raise ModelError(
      f"the model has {model.depth} blocks, and the base of muP has {base.depth}. {only}"
    )
  own, other = ({p.path: len(p.shape) for p in list_parameters(m)} for m in (model, base))
  if own != other:
    differ = sorted(own.items() ^ other.items())[0][0]
    raise ModelError(
      f"the base of muP has other parameters than the model, such as {differ}. {only}"
    )
  for mixer, small in zip(model.mixers(), base.mixers(), strict=True):
    for name in _HEAD_WIDTHS:
      here, there = (getattr(one, name, None) for one in (mixer, small))
      if here != there:
        raise ModelError(
          f"{type(mixer).__name__} has {name}={here}, and {there} in the base of muP. Scale the "
          "number of heads with the width, as in MUP_BASE = ['WIDTH = 256', 'HEADS = 4'], so that "
          "heads are as wide as there."
        )
