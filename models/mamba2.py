"""Mamba-2 (Dao and Gu 2024): mixers without MLPs, and twice as many layers."""

from __future__ import annotations

from base.equal_partial import EqualPartial
from base.ranges import ConvWidth, Count, Depth
from layers.mamba2 import Mamba2Mixer
from models.backbone import Backbone
from models.language_model import LanguageModel


def mamba2(
  backbone: Backbone,
  *,
  heads: Count,
  state_size: Count = 128,
  groups: Count = 1,
  chunk: Count = 128,
  mixer_heads: Count | None = None,
  head_dim: Count | None = None,
  layers: Depth | None = None,
  conv_width: ConvWidth = 4,
  projection_bias: bool = False,
  ssd: str | None = None,
) -> LanguageModel:
  """Builds Mamba-2; a mixer and an MLP of the other models are two layers here.

  Args:
    backbone: what all models share; MLPs and `use_bias` have no meaning here.
    heads: attention heads of this size. Mamba-2 has four for each, of half the channels: 64 where
      those have 128, as in the paper, and 2D together.
    state_size, groups, chunk, conv_width: see `layers.mamba2.Mamba2Mixer`.
    mixer_heads: Mamba-2's own heads; None is 4 heads.
    head_dim: their channels; None is width / (2 heads).
    layers: mixers; None is two for each block of the other models.
    projection_bias: biases on the linear maps.
    ssd: a name of `kernels.gated_linear_attention.IMPLEMENTATIONS`; None picks by backend.

  Raises:
    ValueError: sizes do not divide each other.
  """
  if head_dim is None and backbone.width % (2 * heads):
    raise ValueError(
      f"heads={heads}: Mamba-2's heads have width / (2 heads) channels, and {2 * heads} does not "
      "divide "
      f"width={backbone.width}. Choose a number of heads whose double does."
    )
  mixer_heads = mixer_heads or 4 * heads
  if mixer_heads % groups:
    raise ValueError(
      f"groups={groups} does not divide Mamba-2's {mixer_heads} heads: choose a number that does."
    )
  depth = layers or 2 * backbone.depth
  mixer = EqualPartial(
    Mamba2Mixer,
    heads=mixer_heads,
    head_dim=head_dim or backbone.width // (2 * heads),
    state_size=state_size,
    groups=groups,
    conv_width=conv_width,
    use_bias=projection_bias,
    epsilon=backbone.norm_epsilon,
    chunk=chunk,
    output_scale=1 / depth,
    implementation=ssd,
    **backbone.dtypes,
  )
  return backbone.model_of_mixers((mixer,), depth=depth)
