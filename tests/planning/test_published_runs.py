"""The published runs that expected times are held against."""

from __future__ import annotations

import jax
import pytest

from benchmarks import published_runs
from experiment import experiment
from models.accounting import abstract_parameters


@pytest.mark.parametrize(
  ("size", "parameters"),
  [
    ("8b", 8_030_261_248),
    ("70b", 68_976_648_192),
    ("llama3_70b", 70_553_706_496),
    ("32b", 31_663_333_376),
  ],
)
def test_the_models_have_the_published_numbers_of_parameters(size, parameters):
  """Those of Llama-3.1-8B, Llama-2-70B, Llama-3.1-70B and MaxText's model of 32B."""
  run = next(run for run in published_runs.RUNS if run.size == size)
  chosen = published_runs.arguments(run, "full", 2**30)
  files = [word for word in chosen if not word.startswith("--")]
  bindings = [word for word in chosen if word.startswith("--gin.")]
  built = experiment.build(experiment.load(files, bindings))
  leaves = jax.tree.leaves(abstract_parameters(built.model))
  assert sum(leaf.size for leaf in leaves) == parameters
  assert built.sequence_length == run.length


def test_rows_are_per_chip_where_a_chip_is_two_devices():
  run = next(run for run in published_runs.RUNS if run.hardware == "tpu7x-128")
  assert "--gin.BATCH_SIZE=256" in published_runs.arguments(run, "full", 2**30)


def test_errors_are_told_as_they_are_and_with_the_other_runs_factor():
  told = published_runs.errors([1.2, 1.2, 1.5])
  assert "off by 20% in the median, 50% at worst" in told
  # 1.2 over the median of 1.2 and 1.5; 1.5 over 1.2.
  assert "11% in the median, 25% at worst" in told
