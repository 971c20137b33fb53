"""Fixtures of the tests of training."""

import gc

import pytest

from tests.training.checkpoints import save


@pytest.fixture
def quick_collections():
  """Lets `gc.collect` look only at what the test makes: other tests' objects take it seconds."""
  gc.freeze()
  yield
  gc.unfreeze()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A run with checkpoints 10 and 20."""
  run_dir = tmp_path_factory.mktemp("saved")
  save(run_dir, {10: 0.5, 20: 0.4})
  return run_dir
