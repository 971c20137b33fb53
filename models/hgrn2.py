"""HGRN2 (Qin et al. 2024, arXiv 2404.07904)."""

from __future__ import annotations

from base.equal_partial import EqualPartial
from base.ranges import Count
from layers.activations import silu_gated
from layers.delta_net import power_of_two
from layers.hgrn2 import HGRN2
from layers.whole_heads import channels_of
from models.backbone import Backbone
from models.language_model import LanguageModel


def hgrn2(
  backbone: Backbone,
  *,
  heads: Count,
  expansion: Count | None = None,
  chunk: Count = 64,
  gated_linear_attention: str | None = None,
) -> LanguageModel:
  """Builds HGRN2.

  Args:
    backbone: what all models share; `use_bias` acts on the MLPs alone.
    heads: heads of the state, of width / heads values each.
    expansion: numbers that the state keeps for each value, channels of a head's forget gates; None
      is width / heads.
    chunk: tokens that are multiplied as one matrix, a power of two.
    gated_linear_attention: a name of `kernels.gated_linear_attention.IMPLEMENTATIONS`; None picks
      by backend.

  Raises:
    ValueError: the heads do not divide the width, or `chunk` is no power of two.
  """
  channels = channels_of(backbone.width, heads)
  mixer = EqualPartial(
    HGRN2,
    heads=heads,
    key_dim=expansion or channels,
    value_dim=channels,
    chunk=power_of_two(chunk),
    epsilon=backbone.norm_epsilon,
    output_scale=backbone.output_scale,
    implementation=gated_linear_attention,
    **backbone.dtypes,
  )
  return backbone.model((mixer,), mlp=backbone.mlp(silu_gated))
