"""Opens what a run directory holds: the model with its parameters, and the vocabulary."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn

from data.vocabularies import Vocabulary
from launch import experiment as experiment_lib
from launch.experiment import Experiment
from launch.run_directory import RunDirectory
from models.accounting import abstract_parameters
from training import checkpoint


@dataclasses.dataclass(frozen=True)
class Trained:
  """A model that was trained.

  Attributes:
    experiment: the run's configuration, built.
    params: the parameters of one checkpoint.
    step: the checkpoint's step.
    vocabulary: that of the text it was trained on.
  """

  experiment: Experiment
  params: Any
  step: int
  vocabulary: Vocabulary


def load(run: RunDirectory, which: str) -> Trained:
  """Reads a run's checkpoint: 'best', 'latest' or a step.

  Raises:
    UserError: the directory holds no run.
    CheckpointError: there is no such checkpoint, or it cannot be read.
  """
  run.require_run()
  experiment = experiment_lib.build(experiment_lib.load(run.config_file))
  abstract = nn.unbox(abstract_parameters(experiment.model))
  number = int(which) if which.isdigit() else which
  params, step = checkpoint.load_parameters(run.path, checkpoint.abstract_like(abstract), number)
  return Trained(experiment, params, step, run.vocabulary())
