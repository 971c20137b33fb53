"""Errors of kernels name the argument by which a user chooses another kernel."""

import pytest

from config.config import ConfigError
from experiment import experiment
from kernels import platform


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (
      ["--gin.RECURRENCE_KERNEL=pallas_tpu", "--gin.RNN_WIDTH=96"],
      r"multiple of 128, got 96; available on tpu: .*associative.*"
      r"\(to change: --gin\.RECURRENCE_KERNEL=\.\.\. \(now 'pallas_tpu'\)\)",
    ),
    (
      ["--gin.RECURRENCE_KERNEL=mosaic_gpu"],
      r"'mosaic_gpu' runs on gpu.*--gin\.RECURRENCE_KERNEL=",
    ),
    (["--gin.ATTENTION_KERNEL=cudnn"], r"'cudnn' runs on gpu.*--gin\.ATTENTION_KERNEL="),
  ],
)
def test_a_kernel_that_cannot_run_is_named_with_the_argument_that_sets_it(arguments, said):
  small = ["--gin.DEPTH=3", "--gin.WIDTH=96", "--gin.SEQUENCE_LENGTH=16", "--gin.BATCH_SIZE=1"]
  made = experiment.build(experiment.load(["runs/griffin_quickstart.gin"], [*small, *arguments]))
  # The check of a mesh, that of a step, and what a plan lowers say the same.
  with platform.targeting("tpu"), pytest.raises(ConfigError, match=said) as found:
    made.check_step(made.sharding_plan())
  assert "implementation='" not in str(found.value)


def test_widths_that_do_not_fit_the_kernels_train_by_default():
  small = ["--gin.DEPTH=1", "--gin.RNN_WIDTH=96", "--gin.WIDTH=96", "--gin.SEQUENCE_LENGTH=16"]
  made = experiment.build(experiment.load(["runs/hawk_quickstart.gin"], small))
  with platform.targeting("tpu"):
    made.check_step(made.sharding_plan())
