"""Hybrids: any mixers of the zoo in any pattern, with one kind of MLP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from base.equal_partial import EqualPartial
from base.wording import near
from layers.activations import gated
from layers.mixer import MixerFactory
from models.backbone import Backbone
from models.language_model import LanguageModel


def hybrid(
  backbone: Backbone,
  *,
  mixers: Mapping[str, Callable[[], LanguageModel]],
  pattern: Sequence[str],
  activation: str = "gelu_tanh",
  tied: bool = True,
) -> LanguageModel:
  """Builds a hybrid. Griffin, for example, is two recurrent mixers and one of local attention.

  Args:
    backbone: what all blocks share.
    mixers: models by the names of the pattern. Each stands for the mixer of its first block, with
      all options of that model. The rest of the model is left out.
    pattern: names of the mixers of successive blocks, repeated and cut to depth.
    activation: of the MLPs, a name from `layers.activations.ACTIVATIONS`.
    tied: whether the embedding is the output head too, where `Backbone.tied` is None.

  Raises:
    ValueError: the pattern is empty or names no mixer, a mixer is a model that was built, or there
      is no such activation.
  """
  if not pattern:
    raise ValueError(f"pattern is empty{near('', mixers)}")
  for name in pattern:
    if name not in mixers:
      raise ValueError(f"pattern={list(pattern)}: {name!r} is no mixer{near(name, mixers)}")
    if isinstance(mixers[name], LanguageModel):
      raise ValueError(
        f"mixers: {name!r} is a model, not a function that builds one: write @module.name in gin, "
        "without parentheses."
      )
  found = {name: _mixer(mixers[name](), backbone) for name in dict.fromkeys(pattern)}
  blocks = tuple(found[name] for name in pattern)
  return backbone.model(blocks, mlp=backbone.mlp(gated(activation)), tied=tied)


def _mixer(model: LanguageModel, backbone: Backbone) -> MixerFactory:
  mixer = model.pattern[0]
  if model.mlp is None:  # Its blocks add one output to the residual stream, those of a hybrid two.
    return EqualPartial(mixer, output_scale=backbone.output_scale)
  return mixer
