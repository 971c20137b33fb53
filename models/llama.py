"""A Llama-style Transformer: grouped-query attention, SwiGLU, rotary positions, an untied output
head.

Source: Touvron et al. 2023 (Llama 2, with grouped queries) and Grattafiori et al. 2024 (Llama 3).
"""

from __future__ import annotations

from base.ranges import Count, Positive
from layers.mlp import silu_gated
from models.backbone import Backbone
from models.language_model import LanguageModel


def llama(
  backbone: Backbone,
  *,
  heads: Count,
  kv_heads: Count,
  rotary_base: Positive = 500_000.0,
  attention: str | None = None,
) -> LanguageModel:
  """Builds the Transformer.

  Args:
    backbone: what all models share.
    heads: query heads.
    kv_heads: key/value heads; each serves `heads / kv_heads` query heads. Devices along the model
      axis split them, so that it divides them.
    rotary_base: base of the rotary wavelengths (Llama 3's; Llama 2 has 10,000).
    attention: an attention kernel's name; None picks by backend.
  """
  mixer = backbone.attention(
    heads=heads,
    kv_heads=kv_heads,
    window=None,
    rotary_fraction=1.0,
    rotary_base=rotary_base,
    implementation=attention,
  )
  return backbone.model((mixer,), mlp=backbone.mlp(silu_gated), tied=False)
