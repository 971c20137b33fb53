"""Hawk: recurrent blocks only (section 2 of the Griffin paper)."""

from __future__ import annotations

from base.ranges import Count
from models.backbone import Backbone
from models.language_model import LanguageModel


def hawk(
  backbone: Backbone,
  *,
  rnn_width: Count,
  gate_blocks: Count = 16,
  recurrence: str | None = None,
) -> LanguageModel:
  """Builds Hawk.

  Args:
    backbone: what all models share.
    rnn_width: channels R of the recurrent blocks, about 4D/3.
    gate_blocks: diagonal blocks of the gates' weights.
    recurrence: a recurrence kernel's name; None picks by backend.
  """
  recurrent = backbone.recurrent(
    rnn_width=rnn_width, gate_blocks=gate_blocks, implementation=recurrence
  )
  return backbone.model((recurrent,))
