"""Estimates of training steps equal those of `launch.plan`."""

import importlib.util

import pytest

from config.config import ConfigError
from models.backbone import Backbone
from models.hawk import hawk
from planning import plan as planning
from planning.hardware import catalogue
from planning.step_estimate import StepEstimate
from tests import small_models


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed"
)
def test_an_estimate_is_the_expected_time_of_a_plan_that_fits(monkeypatch):
  plans = []

  def plan(*arguments):
    plans.append(planning.plan(*arguments))
    return plans[-1]

  monkeypatch.setattr("planning.step_estimate.plan", plan)
  backbone = Backbone(vocab_size=61, width=32, depth=1)
  model = hawk(backbone, rnn_width=48, gate_blocks=4, recurrence="associative")
  seconds = StepEstimate(hardware="v5e-8")(model, batch_size=8, length=16)
  (found,) = plans
  assert (found.batch_size, found.length, found.devices) == (8, 16, 8)
  assert found.mesh["data"] == 8
  # Of what a device has to do, nothing can go faster than its chip.
  least = model.matmul_flops(16) * 3 * 16 / catalogue.hardware("v5e-8").chip.flops
  assert seconds == found.expected.seconds >= least

  monkeypatch.setattr(type(found.memory), "fits", False)
  with pytest.raises(
    ConfigError, match=r"v5e-8: a step of 8 x 16 tokens does not fit: .*more devices"
  ):
    StepEstimate(hardware="v5e-8")(model, batch_size=8, length=16)


def test_hardware_that_is_not_known_is_refused():
  with pytest.raises(ConfigError, match="hardware 'abacus-8' is not known"):
    StepEstimate(hardware="abacus-8")(small_models.build("hawk"), batch_size=8, length=16)
