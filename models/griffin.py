"""Griffin: two recurrent blocks, then local attention (section 2 of the Griffin paper)."""

from __future__ import annotations

from collections.abc import Sequence

from base.ranges import ConvWidth, Count, Positive, Share
from layers.activations import gated
from models.backbone import Backbone
from models.language_model import LanguageModel


def griffin(
  backbone: Backbone,
  *,
  rnn_width: Count,
  heads: Count,
  kv_heads: Count = 1,
  window: Count = 1024,
  gate_blocks: Count = 16,
  rotary_fraction: Share = 1.0,
  pattern: Sequence[str] = ("recurrent", "recurrent", "attention"),
  head_dim: Count | None = None,
  rotary_base: Positive = 10_000.0,
  attention_bias: bool = False,
  conv_width: ConvWidth = 4,
  activation: str = "gelu_tanh",
  recurrence: str | None = None,
  attention: str | None = None,
) -> LanguageModel:
  """Builds Griffin.

  Args:
    backbone: what all models share.
    rnn_width: channels R of the recurrent blocks, about 4D/3.
    heads: query heads.
    kv_heads: key/value heads; the paper has one.
    window: tokens that local attention sees.
    gate_blocks: diagonal blocks of the gates' weights.
    rotary_fraction: share of each head that carries positions (RecurrentGemma: 0.5).
    pattern: the mixers of successive blocks, repeated and cut to depth; the networks of appendix H
      have attention in the third of five blocks alone.
    head_dim: channels of an attention head; None is width / heads.
    rotary_base: base of the rotary wavelengths.
    attention_bias: biases on the maps to queries, keys and values.
    conv_width: tokens that one output of the convolution sees.
    activation: of the recurrent blocks' gate and of the MLPs, a name from
      `layers.activations.ACTIVATIONS`.
    recurrence, attention: kernel names; None picks by backend.

  Raises:
    ValueError: the pattern names another mixer, or there is no such activation.
  """
  recurrent = backbone.recurrent(
    rnn_width=rnn_width,
    gate_blocks=gate_blocks,
    implementation=recurrence,
    conv_width=conv_width,
    activation=activation,
  )
  local = backbone.attention(
    heads=heads,
    kv_heads=kv_heads,
    window=window,
    rotary_fraction=rotary_fraction,
    implementation=attention,
    head_dim=head_dim,
    rotary_base=rotary_base,
    input_bias=attention_bias,
  )
  mixers = {"recurrent": recurrent, "attention": local}
  unknown = [name for name in pattern if name not in mixers]
  if unknown:
    raise ValueError(
      f"pattern={tuple(pattern)} names {unknown[0]!r}: a block of Griffin is 'recurrent' or "
      "'attention'."
    )
  return backbone.model(
    tuple(mixers[name] for name in pattern), mlp=backbone.mlp(gated(activation))
  )
