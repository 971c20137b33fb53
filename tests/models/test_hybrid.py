"""Hybrids: the models of the zoo as patterns, mixers beside each other, and refusals."""

from __future__ import annotations

import re

import pytest

from config.place import ConfigError
from experiment import model_zoo
from layers.attention import SelfAttention
from layers.delta_net import GatedDeltaNet, KimiDeltaAttention
from layers.hgrn2 import HGRN2
from layers.mamba2 import Mamba2Mixer
from layers.mlstm import MLSTM
from layers.recurrent_block import RecurrentBlock

KINDS = {
  "recurrent": RecurrentBlock,
  "cg_recurrent": RecurrentBlock,
  "mamba2": Mamba2Mixer,
  "gated_deltanet": GatedDeltaNet,
  "kimi_delta": KimiDeltaAttention,
  "hgrn2": HGRN2,
  "mlstm": MLSTM,
  "attention": SelfAttention,
  "local_attention": SelfAttention,
}


def build(pattern, *arguments):
  model, _ = model_zoo.build(["models/hybrid.gin"], [f"--gin.PATTERN={pattern}", *arguments])
  return model


@pytest.mark.parametrize(
  ("name", "pattern", "arguments"),
  [
    ("griffin", ["recurrent", "recurrent", "local_attention"], ()),
    ("hawk", ["recurrent"], ()),
    ("transformer", ["attention"], ()),
    ("cg_griffin", ["cg_recurrent", "cg_recurrent", "local_attention"], ()),
    ("gated_deltanet", ["gated_deltanet"], ("--gin.hybrid.hybrid.activation='silu'",)),
  ],
)
def test_models_of_the_zoo_are_patterns(name, pattern, arguments):
  """Equal models have the same parameters in the same places, and compute the same."""
  expected, _ = model_zoo.build([model_zoo.file_of(name)])
  assert build(pattern, *arguments) == expected


def test_every_mixer_may_stand_beside_every_other():
  model = build(list(KINDS), "--gin.models.backbone.Backbone.depth=11")
  found = [type(mixer) for mixer in model.mixers()]
  assert found == [*KINDS.values(), RecurrentBlock, RecurrentBlock]
  windows = [m.window for m in model.mixers() if isinstance(m, SelfAttention)]
  assert windows == [None, 8]
  scales = {mixer.output_scale for mixer in model.mixers()}
  assert scales == {2 / 11}


def test_a_mixer_keeps_the_options_of_its_model():
  model = build(["mamba2"], "--gin.mamba2.mamba2.state_size=24")
  assert model.mixers()[0].state_size == 24
  assert model.mlp is not None


@pytest.mark.parametrize(
  ("pattern", "arguments", "message"),
  [
    (["recurent"], (), "'recurent' is no mixer; did you mean recurrent? (in"),
    ([], (), "pattern is empty; choose from attention"),
    (["a"], ("--gin.MIXERS={'a': @hawk.hawk()}",), "'a' is a model, not a function that builds"),
  ],
)
def test_what_is_no_pattern_is_refused(pattern, arguments, message):
  with pytest.raises(ConfigError, match=re.escape(message)):
    build(pattern, *arguments)
