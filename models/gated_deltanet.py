"""Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464)."""

from __future__ import annotations

from base.equal_partial import EqualPartial
from base.ranges import ConvWidth, Corrections, Count, Positive
from layers.activations import silu_gated
from layers.delta_net import GatedDeltaNet, key_dim_of, output_epsilon, power_of_two
from models.backbone import Backbone
from models.language_model import LanguageModel


def gated_deltanet(
  backbone: Backbone,
  *,
  heads: Count,
  head_dim: Count | None = None,
  value_expansion: Count = 1,
  corrections: Corrections = 1,
  decays: bool = True,
  negative_eigenvalues: bool = False,
  chunk: Count = 64,
  conv_width: ConvWidth = 4,
  norm_epsilon: Positive | None = None,
  delta_rule: str | None = None,
) -> LanguageModel:
  """Builds Gated DeltaNet; its options make DeltaNet and DeltaProduct too.

  Args:
    backbone: what all models share; `use_bias` acts on the MLPs alone.
    heads: heads of the delta rule.
    head_dim: channels of a head's keys; None is width / heads.
    value_expansion: channels of a head's values over those of its keys.
    corrections, decays, negative_eigenvalues, conv_width: see `layers.delta_net.GatedDeltaNet`.
    chunk: tokens that are multiplied as one matrix, a power of two.
    norm_epsilon: of the output norm; None is `layers.delta_net.output_epsilon` of the keys.
    delta_rule: a name of `kernels.delta_rule.IMPLEMENTATIONS`; None picks by backend.

  Raises:
    ValueError: the heads do not divide the width, or `chunk` is no power of two.
  """
  key_dim = key_dim_of(backbone.width, heads, head_dim)
  mixer = EqualPartial(
    GatedDeltaNet,
    heads=heads,
    key_dim=key_dim,
    value_dim=value_expansion * key_dim,
    conv_width=conv_width,
    corrections=corrections,
    decays=decays,
    negative_eigenvalues=negative_eigenvalues,
    chunk=power_of_two(chunk),
    norm_epsilon=norm_epsilon or output_epsilon(key_dim),
    output_scale=backbone.output_scale,
    implementation=delta_rule,
    **backbone.dtypes,
  )
  return backbone.model((mixer,), mlp=backbone.mlp(silu_gated))
