"""xLSTM of mLSTM blocks (Beck et al. 2024, arXiv 2405.04517), as xLSTM 7B (arXiv 2503.13427)."""

from __future__ import annotations

from base.equal_partial import EqualPartial
from base.ranges import Count, Positive
from layers.activations import silu_gated
from layers.mlstm import MLSTM
from layers.whole_heads import channels_of
from models.backbone import Backbone
from models.language_model import LanguageModel


def xlstm(
  backbone: Backbone,
  *,
  heads: Count,
  key_dim: Count | None = None,
  gate_cap: Positive = 15.0,
  logit_cap: Positive = 30.0,
  chunk: Count = 64,
  gated_linear_attention: str | None = None,
) -> LanguageModel:
  """Builds xLSTM with the block of xLSTM 7B.

  Args:
    backbone: what all models share; `use_bias` acts on the MLPs alone.
    heads: heads of mLSTM, of width / heads values each.
    key_dim: channels of a head's queries and keys; None is half of those of its values.
    gate_cap: bound on the pre-activations of input and forget gates.
    logit_cap: bound on the logits, where `Backbone.logit_cap` is None.
    chunk: tokens that are multiplied as one matrix.
    gated_linear_attention: a name of `kernels.gated_linear_attention.IMPLEMENTATIONS`; None picks
      by backend.

  Raises:
    ValueError: the heads do not divide the width, or leave a value of one channel.
  """
  channels = channels_of(backbone.width, heads)
  if channels < 2:
    raise ValueError(f"heads={heads}: a head of one value has no layer norm. Choose fewer heads.")
  mixer = EqualPartial(
    MLSTM,
    heads=heads,
    key_dim=key_dim or channels // 2,
    value_dim=channels,
    gate_cap=gate_cap,
    chunk=chunk,
    epsilon=backbone.norm_epsilon,
    output_scale=backbone.output_scale,
    implementation=gated_linear_attention,
    **backbone.dtypes,
  )
  model = backbone.model((mixer,), mlp=backbone.mlp(silu_gated), tied=False)
  return model.clone(logit_cap=logit_cap) if model.logit_cap is None else model
