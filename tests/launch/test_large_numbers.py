"""Whole numbers of more than 32 bits where a number of any kind is wanted: the whole step is traced with them."""

import pytest

from launch import mesh_advice
from launch.experiment import build, load

SMALL = ["DEPTH=3", "WIDTH=16", "RNN_WIDTH=16", "HEADS=1", "SEQUENCE_LENGTH=8", "BATCH_SIZE=1"]


@pytest.mark.parametrize("value", [10**12, 2**63 - 1])
@pytest.mark.parametrize(
  "name",
  [
    "models.backbone.Backbone.logit_cap",
    "training.optimizer.AdamW.clip_norm",
    "training.optimizer.AdamW.weight_decay",
    "training.optimizer.AdamW.epsilon",
    "training.step.Options.z_loss",
    "training.step.Options.spike_factor",
    "LEARNING_RATE",
  ],
)
def test_a_large_whole_number_is_a_number(name, value):
  small = [f"--gin.{setting}" for setting in SMALL]
  experiment = build(load("gin/runs/griffin_quickstart.gin", [f"--gin.{name}={value}", *small]))
  experiment.check_step(mesh_advice.layout(experiment))
