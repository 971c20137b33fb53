"""Fixtures of the tests of training."""

import pytest

from tests.training.checkpoints import save


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A run with checkpoints 10 and 20."""
  run_dir = tmp_path_factory.mktemp("saved")
  save(run_dir, {10: 0.5, 20: 0.4})
  return run_dir
