"""The MQA Transformer, the baseline of the Griffin paper (section 2)."""

from __future__ import annotations

from base.ranges import Count, Share
from models.backbone import Backbone
from models.language_model import LanguageModel


def transformer(
  backbone: Backbone,
  *,
  heads: Count,
  window: Count | None = None,
  rotary_fraction: Share = 1.0,
  attention: str | None = None,
) -> LanguageModel:
  """Builds the baseline.

  Args:
    backbone: what all models share.
    heads: query heads; there is one key/value head.
    window: tokens that attention sees; None is the paper's global attention.
    rotary_fraction: share of each head that carries positions.
    attention: an attention kernel's name; None picks by backend.
  """
  mixer = backbone.attention(
    heads=heads, window=window, rotary_fraction=rotary_fraction, implementation=attention
  )
  return backbone.model((mixer,))
