"""Mamba-2; tests/conversion compares it with Hugging Face's."""

import pytest

from models.accounting import list_parameters
from models.backbone import Backbone
from models.mamba2 import mamba2
from training.optimizer import is_decayed

WIDTH = 16


def test_a_model_has_two_layers_for_each_mixer_and_mlp_of_the_others():
  backbone = Backbone(vocab_size=8, width=WIDTH, depth=3)
  assert mamba2(backbone, heads=2).depth == 6


def test_weight_decay_acts_on_linear_maps_and_the_embedding_alone():
  model = mamba2(Backbone(vocab_size=8, width=WIDTH, depth=1), heads=2)
  paths = [tuple(parameter.path.split("/")) for parameter in list_parameters(model)]
  linear = {"z", "x", "bc", "dt", "out", "embedding"}
  assert {path[-2] for path in paths if is_decayed(path)} == linear


def test_heads_whose_double_does_not_divide_the_width_are_refused():
  with pytest.raises(ValueError, match=r"heads=3: .* 6 does not divide width=16"):
    mamba2(Backbone(vocab_size=8, width=WIDTH, depth=1), heads=3)


def test_groups_that_do_not_divide_the_heads_are_refused():
  with pytest.raises(ValueError, match="groups=3 does not divide Mamba-2's 8 heads"):
    mamba2(Backbone(vocab_size=8, width=WIDTH, depth=1), heads=2, groups=3)


def test_its_own_sizes_take_the_place_of_those_of_the_other_models():
  model = mamba2(
    Backbone(vocab_size=8, width=WIDTH, depth=1), heads=5, mixer_heads=6, head_dim=3, layers=3
  )
  assert (model.depth, model.mixers()[0].heads, model.mixers()[0].head_dim) == (3, 6, 3)
