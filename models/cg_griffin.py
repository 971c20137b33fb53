"""CG-LRU Griffin: Griffin with complex-valued recurrences (appendix B of the Griffin paper)."""

from __future__ import annotations

from base.ranges import Count
from models.backbone import Backbone
from models.cg_hawk import complex_recurrent
from models.language_model import LanguageModel


def cg_griffin(
  backbone: Backbone,
  *,
  rnn_width: Count,
  heads: Count,
  window: Count = 1024,
  gate_blocks: Count = 16,
  recurrence: str | None = None,
  attention: str | None = None,
) -> LanguageModel:
  """Builds CG-LRU Griffin; the arguments are those of `models.griffin.griffin`."""
  recurrent = complex_recurrent(backbone, rnn_width, gate_blocks, recurrence)
  local = backbone.attention(
    heads=heads, window=window, rotary_fraction=1.0, implementation=attention
  )
  return backbone.model((recurrent, recurrent, local))
