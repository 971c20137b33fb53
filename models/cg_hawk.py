"""CG-LRU Hawk: Hawk with complex-valued recurrences (appendix B of the Griffin paper)."""

from __future__ import annotations

from base.equal_partial import EqualPartial
from base.ranges import Count
from layers.cg_lru import CGLRU
from layers.mixer import MixerFactory
from models.backbone import Backbone
from models.language_model import LanguageModel


def cg_hawk(
  backbone: Backbone,
  *,
  rnn_width: Count,
  gate_blocks: Count = 16,
  recurrence: str | None = None,
) -> LanguageModel:
  """Builds CG-LRU Hawk; the arguments are those of `models.hawk.hawk`."""
  return backbone.model((complex_recurrent(backbone, rnn_width, gate_blocks, recurrence),))


def complex_recurrent(
  backbone: Backbone, rnn_width: int, gate_blocks: int, recurrence: str | None
) -> MixerFactory:
  """The recurrent block with complex states; half of `rnn_width` are real parts."""
  block = backbone.recurrent(
    rnn_width=rnn_width, gate_blocks=gate_blocks, implementation=recurrence
  )
  return EqualPartial(block, recurrence=EqualPartial(CGLRU, name="cg_lru"))
