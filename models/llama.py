"""A Llama-style Transformer: grouped-query attention, SwiGLU, rotary positions, an untied output
head.

Source: Touvron et al. 2023 (Llama 2, with grouped queries) and Grattafiori et al. 2024 (Llama 3).
"""

from __future__ import annotations

from base.ranges import Count, Positive
from layers.activations import gated
from layers.rotary import RotaryScaling
from models.backbone import Backbone
from models.language_model import LanguageModel


def llama(
  backbone: Backbone,
  *,
  heads: Count,
  kv_heads: Count,
  rotary_base: Positive = 500_000.0,
  head_dim: Count | None = None,
  attention_bias: bool | None = None,
  activation: str = "silu",
  rotary_factor: Positive = 1.0,
  rotary_original_length: Count | None = None,
  rotary_low: Positive = 1.0,
  rotary_high: Positive = 4.0,
  attention: str | None = None,
) -> LanguageModel:
  """Builds the Transformer.

  Args:
    backbone: what all models share.
    heads: query heads.
    kv_heads: key/value heads; each serves `heads / kv_heads` query heads. Devices along the model
      axis split them, so that it divides them.
    rotary_base: base of the rotary wavelengths (Llama 3's; Llama 2 has 10,000).
    head_dim: channels of a head; None is width / heads.
    attention_bias: biases on all four maps of the attention, or on none; None is a bias on the
      output map alone if `Backbone.use_bias` is True.
    activation: of the MLPs, a name from `layers.activations.ACTIVATIONS`.
    rotary_factor, rotary_original_length, rotary_low, rotary_high: fields of
      `layers.rotary.RotaryScaling`; a factor of 1 leaves the wavelengths.
    attention: an attention kernel's name; None picks by backend.

  Raises:
    ValueError: there is no such activation, `rotary_high` is not above `rotary_low`, or
      `rotary_original_length` is set without `rotary_factor`.
  """
  if rotary_high <= rotary_low:
    raise ValueError(
      f"rotary_high={rotary_high} must be above rotary_low={rotary_low} (Llama 3.1 has 4 and 1)."
    )
  if rotary_original_length is not None and rotary_factor == 1.0:
    raise ValueError(
      f"rotary_original_length={rotary_original_length} has no effect with rotary_factor=1: set "
      "rotary_factor too (Llama 3.1 has 8 and 8192)."
    )
  scaling = RotaryScaling(
    factor=rotary_factor,
    original_length=rotary_original_length,
    low=rotary_low,
    high=rotary_high,
  )
  mixer = backbone.attention(
    heads=heads,
    kv_heads=kv_heads,
    window=None,
    rotary_fraction=1.0,
    rotary_base=rotary_base,
    head_dim=head_dim,
    rotary_scaling=None if rotary_factor == 1.0 else scaling,
    input_bias=bool(attention_bias),
    output_bias=attention_bias,
    implementation=attention,
  )
  return backbone.model((mixer,), mlp=backbone.mlp(gated(activation)), tied=False)
