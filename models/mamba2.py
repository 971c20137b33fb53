"""Mamba-2 (Dao and Gu 2024): mixers without MLPs, and twice as many layers."""

from __future__ import annotations

from base.equal_partial import EqualPartial
from base.ranges import Count
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
  ssd: str | None = None,
) -> LanguageModel:
  """Builds Mamba-2; a mixer and an MLP of the other models are two layers here.

  Args:
    backbone: what all models share; MLPs and biases have no meaning here.
    heads: attention heads of this size. Mamba-2 has four for each, of half the channels: 64 where
      those have 128, as in the paper, and 2D together.
    state_size, groups, chunk: see `layers.mamba2.Mamba2Mixer`.
    ssd: a name of `kernels.ssd.IMPLEMENTATIONS`; None picks by backend.
  """
  if backbone.width % (2 * heads):
    raise ValueError(
      f"heads={heads}: Mamba-2's heads have width / (2 heads) channels, and {2 * heads} does not "
      "divide "
      f"width={backbone.width}. Choose a number of heads whose double does."
    )
  depth = 2 * backbone.depth
  mixer = EqualPartial(
    Mamba2Mixer,
    heads=4 * heads,
    head_dim=backbone.width // (2 * heads),
    state_size=state_size,
    groups=groups,
    chunk=chunk,
    output_scale=1 / depth,
    implementation=ssd,
    **backbone.dtypes,
  )
  return backbone.model_of_mixers((mixer,), depth=depth)
