"""Process numbers from the cluster's variables, and from the user's flags instead."""

from __future__ import annotations

import pytest

from parallel import arrival, coordination


@pytest.fixture
def slurm(monkeypatch):
  """The third of four tasks of a job on two nodes, the first on its node."""
  for name, value in {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
  }.items():
    monkeypatch.setenv(name, value)
  monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
  monkeypatch.delenv("JAX_LOCAL_DEVICE_IDS", raising=False)


def test_slurm_gives_each_task_the_device_of_its_number_on_the_node(slurm):
  assert arrival.of_cluster(5)[1:] == (4, 2, [0])


def test_devices_that_the_user_named_are_left_to_jax(slurm, monkeypatch):
  monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "2,3")
  passed = {}

  class Passed(Exception):
    pass

  def initialize(**arguments):
    passed.update(arguments)
    raise Passed

  monkeypatch.setattr("jax.distributed.initialize", initialize)
  monkeypatch.setattr(coordination, "come_to", lambda *_: None)
  monkeypatch.setattr(coordination.threading.Timer, "start", lambda timer: None)
  with pytest.raises(Passed):
    coordination.join(None, None, None, seconds=5)
  assert (passed["num_processes"], passed["process_id"]) == (4, 2)
  # None: JAX takes what the variable says.
  assert passed["local_device_ids"] is None
