"""Kimi Linear (Kimi Team 2025, arXiv 2510.26692): delta attention, with a few layers of attention.

Its attention without positions is multi-query attention here; the paper's is latent attention
(MLA), and its MLPs are mixtures of experts.
"""

from __future__ import annotations

from base.equal_partial import EqualPartial
from base.ranges import ConvWidth, Count, Depth, Positive
from layers.activations import silu_gated
from layers.delta_net import KimiDeltaAttention, key_dim_of, output_epsilon, power_of_two
from models.backbone import Backbone
from models.language_model import LanguageModel


def kimi_linear(
  backbone: Backbone,
  *,
  heads: Count,
  head_dim: Count | None = None,
  delta_layers: Depth = 3,
  negative_eigenvalues: bool = False,
  chunk: Count = 64,
  conv_width: ConvWidth = 4,
  norm_epsilon: Positive | None = None,
  delta_rule: str | None = None,
  attention: str | None = None,
) -> LanguageModel:
  """Builds Kimi Linear.

  Args:
    backbone: what all models share; `use_bias` acts on the MLPs and the attention's output alone.
    heads: heads of both kinds of layers.
    head_dim: channels of a head; None is width / heads.
    delta_layers: layers of delta attention before each layer of attention.
    negative_eigenvalues, conv_width: see `layers.delta_net.GatedDeltaNet`.
    chunk: tokens that are multiplied as one matrix, a power of two.
    norm_epsilon: of the output norm; None is `layers.delta_net.output_epsilon` of a head.
    delta_rule: a name of `kernels.delta_rule.IMPLEMENTATIONS`; None picks by backend.
    attention: an attention kernel's name; None picks by backend.

  Raises:
    ValueError: the heads do not divide the width, or `chunk` is no power of two.
  """
  head_dim = key_dim_of(backbone.width, heads, head_dim)
  mixer = EqualPartial(
    KimiDeltaAttention,
    heads=heads,
    key_dim=head_dim,
    value_dim=head_dim,
    rank=head_dim,
    conv_width=conv_width,
    negative_eigenvalues=negative_eigenvalues,
    chunk=power_of_two(chunk),
    norm_epsilon=norm_epsilon or output_epsilon(head_dim),
    output_scale=backbone.output_scale,
    implementation=delta_rule,
    **backbone.dtypes,
  )
  attend = backbone.attention(
    heads=heads,
    head_dim=head_dim,
    window=None,
    rotary_fraction=0.0,
    implementation=attention,
  )
  return backbone.model((*delta_layers * (mixer,), attend), mlp=backbone.mlp(silu_gated))
