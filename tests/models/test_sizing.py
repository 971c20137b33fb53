"""Models of an asked number of parameters."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import pytest

from base.equal_partial import EqualPartial
from config.place import ConfigError
from experiment import describe, experiment, model_zoo
from models.accounting import ModelError, list_parameters
from models.backbone import Backbone
from models.hawk import hawk
from models.hgrn2 import hgrn2
from models.lora import adapted
from models.mamba2 import mamba2
from models.sizing import sized

SIZES = ["--gin.WIDTH=64", "--gin.RNN_WIDTH=64", "--gin.HEADS=4", "--gin.DEPTH=4"]


def count(model):
  return sum(parameter.count for parameter in list_parameters(model))


@pytest.mark.parametrize("name", sorted(set(model_zoo.names()) - {"mamba2"}))
def test_every_model_of_the_zoo_with_mlps_has_the_asked_size(name):
  model, _ = model_zoo.build([model_zoo.file_of(name)])
  asked = 3 * count(model)
  found, chosen = sized(model, asked)
  assert abs(count(found) / asked - 1) <= 0.01
  assert f"{count(found):,} parameters" in chosen
  assert f"MLPs of width {found.mlp(parent=None).hidden:,}," in chosen
  assert found.clone(mlp=model.mlp) == model


def test_the_largest_multiple_that_is_near_enough_is_chosen():
  model = hawk(Backbone(vocab_size=256, width=1024, depth=2), rnn_width=1024)
  found, chosen = sized(model, 60e6)
  assert found.mlp(parent=None).hidden % 256 == 0
  assert "a multiple of 256" in chosen


def test_models_without_mlps_get_more_blocks_of_the_scale_that_the_depth_asks_for():
  backbone = Backbone(vocab_size=256, width=64, depth=4)
  model = mamba2(backbone, heads=4)
  found, chosen = sized(model, 2e6)
  one = count(model) / model.depth
  assert abs(count(found) - 2e6) <= one
  assert f"{found.depth:,} blocks" in chosen
  assert found == mamba2(backbone, heads=4, layers=found.depth)


@pytest.mark.parametrize(
  ("build", "parameters", "message"),
  [
    (lambda b: hawk(b, rnn_width=64), 1e3, r"PARAMETERS=1000: without MLPs the model has [\d,]+"),
    (lambda b: hawk(b, rnn_width=64), 1e12, "would need MLPs of width .* more than 64 times"),
    (lambda b: mamba2(b, heads=4), 1e3, "without blocks the model has"),
    (lambda b: mamba2(b, heads=4), 1e12, "would need .* blocks, more than 64 times"),
  ],
)
def test_sizes_that_no_width_gives_are_refused(build, parameters, message):
  model = build(Backbone(vocab_size=256, width=64, depth=4))
  with pytest.raises(ModelError, match=message) as refused:
    sized(model, parameters)
  assert "\n" not in str(refused.value)


def test_adapters_do_not_count():
  """A run of adapters asks for the size of the run whose parameters they adapt."""
  model = hawk(Backbone(vocab_size=256, width=64, depth=4), rnn_width=64)
  found, chosen = sized(adapted(model, rank=8), 1e6)
  assert (found.mlp, chosen) == (sized(model, 1e6).model.mlp, sized(model, 1e6).chosen)


def test_learned_states_count_beside_adapters_too():
  """Both are trained, but the states are of the adapted run's model."""
  model = hgrn2(Backbone(vocab_size=256, width=64, depth=4, learned_states=True), heads=4)
  found, expected = sized(adapted(model, rank=8), 1e6), sized(model, 1e6)
  assert (found.model.mlp, found.chosen) == (expected.model.mlp, expected.chosen)


def test_mlps_whose_width_has_another_name_are_refused():
  model = hawk(Backbone(vocab_size=256, width=64, depth=4), rnn_width=64)
  other = model.clone(mlp=EqualPartial(nn.Dense, features=64))
  with pytest.raises(ModelError, match="MLPs are built without an argument `hidden`"):
    sized(other, 2e6)


RUN = "gin/runs/griffin_quickstart.gin"


def test_a_macro_asks_for_the_size_of_a_run():
  built = experiment.build(experiment.load(RUN, ["--gin.PARAMETERS=3e6", *SIZES]))
  assert abs(count(built.model) / 3e6 - 1) <= 0.01
  assert built.chosen_size is not None
  lines = describe.description(built).splitlines()
  assert built.chosen_size in lines
  # It is longer than the table, and does not push its values away.
  costs = lines[lines.index(built.chosen_size) + 1 :]
  assert max(map(len, costs)) < 80
  # As a plan or a trained run changes parts of it.
  again = dataclasses.replace(built, seed=1)
  assert (again.model, again.chosen_size) == (built.model, built.chosen_size)


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ("-1", "above 0"),
    ("'400M'", "PARAMETERS"),
    ("100", r"PARAMETERS=100: without MLPs the model has [\d,]+ already"),
  ],
)
def test_bad_values_of_the_macro_are_one_line(value, message):
  with pytest.raises(ConfigError, match=message) as refused:
    experiment.build(experiment.load(RUN, [f"--gin.PARAMETERS={value}", *SIZES]))
  assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
  "width", ["models.backbone.Backbone.mlp_width", "backbone.Backbone.mlp_width"]
)
def test_a_width_beside_the_macro_is_refused(width):
  arguments = ["--gin.PARAMETERS=3e6", *SIZES, f"--gin.{width}=128"]
  with pytest.raises(
    ConfigError, match=r"mlp_width=128: .* has no effect beside PARAMETERS, .* out"
  ):
    experiment.load(RUN, arguments)
  # A run whose model has none, or a macro that asks for nothing.
  assert experiment.load(RUN, [f"--gin.{width}=128"])
  assert experiment.load(RUN, ["--gin.PARAMETERS=None", f"--gin.{width}=128"])
