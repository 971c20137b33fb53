"""Where the shards of a dataset are packed: values of `dataset.TextDataset.executor`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from base.ranges import Count


@dataclasses.dataclass(frozen=True)
class Local:
  """Processes of this machine, one per core."""


@dataclasses.dataclass(frozen=True)
class Ray:
  """Tasks of Ray, which chooses the machines and starts a task again whose process died.

  Attributes:
    address: that of a Ray cluster whose machines see the same folders, 'host:6379' or 'auto';
      'local' starts Ray on this machine, with one worker per core, and ends it afterwards. None is
      that of the variable RAY_ADDRESS, as in jobs of a cluster, and 'local' without it.
  """

  address: str | None = None


@dataclasses.dataclass(frozen=True)
class Slurm:
  """An array of SLURM jobs, each with a share of the shards, on nodes that see the same folders.

  Attributes:
    jobs: number of jobs.
    cores: cores of each, all on one node.
    options: more options of sbatch, such as '--partition=cpu'; later ones win.
  """

  jobs: Count = 8
  cores: Count = 32
  options: Sequence[str] = ()


Executor = Local | Ray | Slurm
