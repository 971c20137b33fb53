"""Whole numbers of more than 32 bits where a number of any kind is wanted: the whole step is traced
with them.
"""

import pytest

from config.place import ConfigError
from experiment import mesh_advice
from experiment.experiment import build, load
from launch import train

SMALL = ["DEPTH=3", "WIDTH=16", "RNN_WIDTH=16", "HEADS=1", "SEQUENCE_LENGTH=8", "BATCH_SIZE=1"]


@pytest.mark.parametrize("value", [10**12, 2**63 - 1])
@pytest.mark.parametrize(
  "name",
  [
    "models.backbone.Backbone.logit_cap",
    "training.optimizer.AdamW.clip_norm",
    "training.optimizer.AdamW.weight_decay",
    "training.optimizer.AdamW.epsilon",
    "training.step.StepOptions.z_loss",
    "training.step.StepOptions.spike_factor",
    "LEARNING_RATE",
  ],
)
def test_a_large_whole_number_is_a_number(name, value):
  small = [f"--gin.{setting}" for setting in SMALL]
  experiment = build(load("gin/runs/griffin_quickstart.gin", [f"--gin.{name}={value}", *small]))
  experiment.check_step(mesh_advice.sharding_plan(experiment))


@pytest.mark.parametrize("name", ["SEQUENCE_LENGTH", "BATCH_SIZE"])
@pytest.mark.parametrize("value", [10**10 // 8, 2**31 - 1])
def test_a_step_beyond_all_memory_is_refused_before_anything_is_written(
  name, value, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  small = [f"--gin.{setting}" for setting in SMALL if not setting.startswith(name)]
  arguments = ["gin/runs/griffin_quickstart.gin", "--run_dir=x", *small]
  told = r"at least [\d,]+ GB .*; this machine has [\d,]+ GB\. Lower --gin\.BATCH_SIZE"
  with pytest.raises(ConfigError, match=told):
    train.main([*arguments, f"--gin.{name}={value}", "--gin.WIDTH=4096"])
  assert not list(tmp_path.iterdir())
